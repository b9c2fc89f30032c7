"""The int8 twin for ONNX Runtime, by ONNX Runtime's own quantizer."""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from bnnedge.export.runtimes.runtime import Images


def quantize_onnx(data: bytes, images: Images) -> bytes:
    """``data`` in int8 with QuantizeLinear and DequantizeLinear, weights per channel, ranges from ``images``.

    Activations are unsigned on x86, where the fast instructions multiply unsigned by signed bytes, signed elsewhere.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    name = onnx.load_model_from_string(data).graph.input[0].name

    class Images_(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images: Iterator[Any] = iter([{name: images[i : i + 1]} for i in range(len(images))])

        def get_next(self) -> Any:
            return next(self._images, None)

    unsigned = platform.machine().lower() in ("x86_64", "amd64")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a preparation that the exporter's own passes have done
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
            source.write_bytes(data)
            quantize_static(
                source,
                target,
                Images_(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
            return target.read_bytes()
    finally:
        root.setLevel(level)
