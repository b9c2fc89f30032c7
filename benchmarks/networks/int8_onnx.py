"""The int8 twin for ONNX Runtime, by ONNX Runtime's own quantizer."""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import onnx

from bnnedge.export.runtimes.runtime import Images

X86 = ("x86_64", "amd64")


def weight_bits(machine: str, cpu_flags: Collection[str]) -> int:
    """Bits of a weight that ONNX Runtime's int8 kernels can use: 7 on x86 without VNNI, else 8.

    On x86 without VNNI they add two products, each of an unsigned and a signed byte, in 16 bits: 2 * 255 * 127 does not
    fit, 2 * 255 * 64 does. The documentation of ONNX Runtime advises ``reduce_range`` or unsigned weights then, of
    which the first is faster: on Zen 3 ``resnet18_1w1a`` took 27.5 ms at 224x224, with unsigned weights 38.2 ms, with
    both signed 68 ms.
    """
    return 7 if machine.lower() in X86 and not {"avx512_vnni", "avx_vnni"} & set(cpu_flags) else 8


def quantize_onnx(data: bytes, images: Images, bits: int = 8) -> bytes:
    """``data`` in int8 with QuantizeLinear and DequantizeLinear, ranges from ``images``.

    Weights have ``bits`` bits, 8 or 7, and a scale per channel. Activations are unsigned on x86, where the fast
    instructions multiply unsigned by signed bytes, signed elsewhere.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    model = onnx.load_model_from_string(data)
    name = model.graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images: Iterator[Any] = iter([{name: images[i : i + 1]} for i in range(len(images))])

        def get_next(self) -> Any:
            return next(self._images, None)

    unsigned = platform.machine().lower() in X86
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a preparation that the exporter's own passes have done
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
            source.write_bytes(model.SerializeToString())
            quantize_static(
                source,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=bits == 7,
                activation_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
            return target.read_bytes()
    finally:
        root.setLevel(level)
