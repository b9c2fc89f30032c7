"""Seeds for the fuzz targets, made from real files: ``python fuzz_seeds.py FOLDER``.

``FOLDER/fuzz_litert_delegate`` gets the files of ``tests/lce_models`` and exports of small networks;
``FOLDER/fuzz_flexbuffer`` the options in them; ``FOLDER/fuzz_onnxruntime`` the nodes of such exports in the form that
``fuzz_onnxruntime.cc`` reads.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from onnx import AttributeProto, numpy_helper
from torch import Tensor, nn

from bnnedge.export.passes import optimize
from bnnedge.export.passes.quantize_stem import Calibration
from bnnedge.export.targets.onnx.target import OnnxTarget
from bnnedge.export.targets.tflite.reader import parse_model
from bnnedge.export.targets.tflite.target import LceTarget
from bnnedge.export.trace import trace
from bnnedge.layers.binary_layers import BinaryConv2d
from bnnedge.layers.deploy import deploy

LCE_MODELS = Path(__file__).resolve().parents[1] / "lce_models"
PATTERN_BYTES = 64
"""The values of each tensor; the target repeats them."""


class Residual(nn.Module):
    """A strided block whose shortcut is subsampled and widened, then a grouped and dilated one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(BinaryConv2d(3, 33, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(33))
        self.second = nn.Sequential(BinaryConv2d(33, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.Hardtanh())
        self.third = nn.Sequential(
            BinaryConv2d(64, 64, 3, padding=2, dilation=2, groups=2, bias=False), nn.BatchNorm2d(64), nn.Hardtanh()
        )
        self.last = BinaryConv2d(64, 5, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        shortcut = nn.functional.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 0, 31))
        z = nn.functional.avg_pool2d(self.second(y), 2) + shortcut
        logits: Tensor = self.last(self.third(z) + z)
        return logits


class Chain(nn.Sequential):
    """Convolutions in a row, whose bits stay bits, and a pool between them."""

    def __init__(self) -> None:
        super().__init__(
            BinaryConv2d(33, 40, 3, bias=False),
            nn.BatchNorm2d(40),
            BinaryConv2d(40, 31, (1, 2), bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(31),
            BinaryConv2d(31, 7, 3, padding=1, bias=False),
        )


class Stem(nn.Sequential):
    """A float convolution that becomes int8, with everything that can be around it."""

    def __init__(self, stride: int) -> None:
        super().__init__(
            nn.Conv2d(2, 9, 5, stride, 2),
            nn.BatchNorm2d(9),
            nn.Hardtanh(),
            nn.MaxPool2d(3, 2, 1),
            BinaryConv2d(9, 5, 3, padding=1, bias=False),
        )


def networks() -> Iterator[tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    stems = ((Stem(1), (1, 2, 9, 8)), (Stem(2), (1, 2, 12, 10)))
    for model, shape in ((Residual(), (1, 3, 8, 8)), (Chain(), (1, 33, 8, 7)), *stems):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
        yield model.eval(), torch.zeros(shape)


# ---- Nodes of ONNX files ----

ATTRIBUTES = {AttributeProto.INT: 0, AttributeProto.INTS: 1, AttributeProto.FLOAT: 2, AttributeProto.FLOATS: 3}
STRING = 4


def number(value: int) -> bytes:
    if 0 <= value < 254:
        return bytes([value])
    if -128 <= value < 0:
        return b"\xfe" + struct.pack("<b", value)
    return b"\xff" + struct.pack("<q", value)


def text(value: str) -> bytes:
    return number(len(value)) + value.encode()


def attribute(proto: AttributeProto) -> bytes:
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return text(proto.name) + bytes([STRING]) + number(len(value)) + value
    values = value if proto.type in (AttributeProto.INTS, AttributeProto.FLOATS) else [value]
    body = b"".join(struct.pack("<f", v) if isinstance(v, float) else number(v) for v in values)
    count = b"" if proto.type == AttributeProto.INT else number(len(values))
    return text(proto.name) + bytes([ATTRIBUTES[proto.type]]) + count + body


def tensor(kind: int, shape: list[int], data: bytes) -> bytes:
    pattern = data[:PATTERN_BYTES]
    return bytes([kind]) + number(len(shape)) + b"".join(map(number, shape)) + number(len(pattern)) + pattern


def nodes(model: onnx.ModelProto) -> Iterator[bytes]:
    """Those of our domain; inputs that are no constants hold noise, for a batch of one."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {info.name: info.type.tensor_type for info in (*graph.input, *graph.value_info)}
    constants = {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}
    noise = torch.randn(PATTERN_BYTES // 4).numpy().tobytes()
    for node in model.graph.node:
        if node.domain != "bnnedge":
            continue
        inputs = b""
        for name in node.input:
            if name in constants:
                kind = onnx.helper.np_dtype_to_tensor_dtype(constants[name].dtype)
                inputs += tensor(kind, list(constants[name].shape), constants[name].tobytes())
            elif name:
                inputs += tensor(types[name].elem_type, sizes(types[name]), noise)
            else:
                inputs += tensor(0, [], b"")
        body = text(node.op_type) + b"\x00" + number(len(node.attribute))
        body += b"".join(map(attribute, node.attribute)) + number(len(node.input)) + inputs
        is_nchw = node.op_type.startswith("Binary") or "Quantized" in node.op_type
        larger = (1, 0, 2, 1) if is_nchw else (1, 2, 1, 0)  # or NHWC
        resized = (size + more for size, more in zip(sizes(types[node.input[0]]), larger, strict=True))
        yield body + b"".join(map(number, resized))


def sizes(kind: onnx.TypeProto.Tensor) -> list[int]:
    return [dimension.dim_value or 1 for dimension in kind.shape.dim]


def options(file: bytes) -> Iterator[bytes]:
    for op in parse_model(file).subgraph.operators:
        if op.customOptions is not None:
            yield bytes(op.customOptions)


def main(folder: Path) -> None:
    models = [path.read_bytes() for path in sorted(LCE_MODELS.glob("*.tflite"))]
    exports, cases = list[bytes](), list[bytes]()
    for model, x in networks():
        calibration = Calibration(torch.randn(x.shape).numpy()) if isinstance(model, Stem) else None
        graph = optimize(trace(deploy(model), x), calibration)
        exports.append(LceTarget().write(graph))
        cases += nodes(onnx.load_model_from_string(OnnxTarget().write(graph)))
    maps = sorted({blob for file in (*models, *exports) for blob in options(file)})
    delegate = "fuzz_litert_delegate"
    sets = ((delegate, "model", models), (delegate, "export", exports))
    for target, name, seeds in (*sets, ("fuzz_flexbuffer", "map", maps), ("fuzz_onnxruntime", "node", cases)):
        (folder / target).mkdir(parents=True, exist_ok=True)
        for i, seed in enumerate(seeds):
            (folder / target / f"{name}{i}").write_bytes(seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
