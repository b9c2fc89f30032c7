"""What can run a convolution, ours and others', each with its own best way of being called.

An ``Engine`` prepares a shape and gives a function without arguments that runs ``calls`` convolutions on data that is
in place. Where the shape allows it others run a chain in one call: that spreads their start and their changes of
layout over several convolutions. Ours starts anew each time, from floats to floats.

TFLite knows no symmetric padding at stride 2; those engines get the padded image instead, which is less work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bnnedge import __version__
from bnnedge.benchmarks.ops.shapes import ConvShape
from bnnedge.errors import BenchmarkError
from bnnedge.export import graph as g
from bnnedge.export.runtimes.lce import Kernel, Lce, LceSession
from bnnedge.export.targets.tflite.reader import parse_model
from bnnedge.export.targets.tflite.target import LceTarget
from bnnedge.export.targets.tflite.writer import schema, serialize
from bnnedge.kernels import native
from bnnedge.kernels.geometry import BConv2dGeometry
from bnnedge.kernels.layout import pack

CHAIN = 4
"""Convolutions in one call of an engine that can chain them."""


@dataclass(frozen=True)
class Prepared:
    """``run`` does ``calls`` convolutions."""

    run: Callable[[], object]
    calls: int


class Engine(ABC):
    """One column of the table."""

    name: str
    package: ClassVar[str] = ""

    def unavailable(self) -> str | None:
        """None, or why it cannot run here."""
        return None

    def version(self) -> str:
        return metadata.version(self.package) if self.package else __version__

    @abstractmethod
    def prepare(self, shape: ConvShape, threads: int) -> Prepared: ...


def signs(shape: ConvShape, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """An input [H, W, C] of noise and weights [O, kh, kw, C] in {-1, +1}."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((shape.height, shape.width, shape.channels)).astype(np.float32)
    w = rng.choice(np.array([-1, 1], np.int8), (shape.out_channels, shape.kernel, shape.kernel, shape.channels))
    return x, w


def aligned(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An empty array at a multiple of 64 bytes, as the runtimes lay out their tensors and NumPy does not."""
    room = np.empty(4 * int(np.prod(shape)) + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + 4 * int(np.prod(shape))].view(np.float32).reshape(shape)


class Native(Engine):
    """Our C++ kernel: pack the float input, convolve, scale into a float output, NHWC."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self.name = f"bnnedge {kernel}"

    def unavailable(self) -> str | None:
        if not native.available():
            return "the native kernels were not built"
        return None if self.kernel in native.kernel_names() else "this CPU lacks the instructions"

    def prepare(self, shape: ConvShape, threads: int) -> Prepared:
        return Prepared(self.bind(shape, threads)[0], 1)

    def bind(self, shape: ConvShape, threads: int) -> tuple[Callable[[], None], NDArray[Any]]:
        """The convolution, and the array that the output goes to."""
        x, w = signs(shape)
        words, filters = pack(x[None]), pack(w)
        pair = (shape.stride, shape.stride), (shape.padding, shape.padding)
        geometry = BConv2dGeometry.check(words, filters, shape.channels, *pair, 0, (1, 1), 1)
        count = shape.out_channels
        transform = native.OutputTransform(
            kind="float", multiplier=np.ones(count, np.float32), bias=np.zeros(count, np.float32)
        )
        conv = native.Conv(native.to_params(geometry), filters, transform, kernel=self.kernel, threads=threads)
        values, out = aligned((1, *x.shape)), aligned(conv.output_shape)
        values[:] = x
        return conv.bind(values, out), out

    def check(self, shape: ConvShape) -> None:
        """Raise ``BenchmarkError`` unless the result equals that of PyTorch: sums of +-1 are exact in float32."""
        import torch
        from torch.nn import functional as F

        run, out = self.bind(shape, 1)
        run()
        x, w = signs(shape)
        inputs = torch.from_numpy(np.where(x < 0, -1, 1).astype(np.float32)).permute(2, 0, 1)[None]
        weights = torch.from_numpy(w.astype(np.float32)).permute(0, 3, 1, 2)
        expected = F.conv2d(inputs, weights, None, shape.stride, shape.padding)[0].permute(1, 2, 0).numpy()
        if not np.array_equal(out[0], expected):
            raise BenchmarkError(f"{self.name} is wrong on {shape.name}: no time is taken of wrong results")


class Torch(Engine):
    """PyTorch, float32, channels-last."""

    name = "torch fp32"
    package = "torch"

    def prepare(self, shape: ConvShape, threads: int) -> Prepared:
        import torch
        from torch.nn import functional as F

        torch.set_num_threads(threads)
        x, w = signs(shape)
        value = torch.from_numpy(x).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
        weight = torch.from_numpy(w.astype(np.float32)).permute(0, 3, 1, 2)
        weight = (weight / shape.channels).contiguous(memory_format=torch.channels_last)
        bias = torch.zeros(shape.out_channels)
        calls = CHAIN if shape.chains else 1

        def run() -> None:
            with torch.inference_mode():
                y = value
                for _ in range(calls):
                    y = F.conv2d(y, weight, bias, shape.stride, shape.padding)

        return Prepared(run, calls)


class OnnxRuntime(Engine):
    """ONNX Runtime: Conv in float32, or QLinearConv of uint8 activations and int8 weights.

    Pairs of products with weights of +-1 fit the 16 bits in which kernels for x86 without VNNI add them.
    """

    package = "onnxruntime"

    def __init__(self, integers: bool) -> None:
        self.integers = integers
        self.name = "ort int8" if integers else "ort fp32"

    def prepare(self, shape: ConvShape, threads: int) -> Prepared:
        import onnxruntime as ort

        calls = CHAIN if shape.chains else 1
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        session = ort.InferenceSession(self._model(shape, calls), options, providers=["CPUExecutionProvider"])
        x, _ = signs(shape)
        value = np.ascontiguousarray(x.transpose(2, 0, 1)[None])
        if self.integers:
            value = np.clip(value * 32 + 128, 0, 255).astype(np.uint8)
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(value))
        out_shape = (1, shape.out_channels, shape.out_height, shape.out_width)
        binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(np.empty(out_shape, value.dtype)))
        return Prepared(partial(session.run_with_iobinding, binding), calls)

    def _model(self, shape: ConvShape, calls: int) -> bytes:
        from onnx import TensorProto, helper, numpy_helper

        element = TensorProto.UINT8 if self.integers else TensorProto.FLOAT
        _, w = signs(shape)
        weight = np.ascontiguousarray(w.transpose(0, 3, 1, 2))
        constants: dict[str, NDArray[Any]] = {"w": weight.astype(np.float32) / shape.channels}
        if self.integers:
            constants = {
                "w": weight,
                "scale": np.array(1 / 32, np.float32),
                "w_scale": np.full(shape.out_channels, 1 / shape.channels, np.float32),
                "zero": np.array(128, np.uint8),
                "w_zero": np.zeros(shape.out_channels, np.int8),
            }
        attributes: dict[str, Any] = {"pads": [shape.padding] * 4, "strides": [shape.stride] * 2}
        names = ["x", *(f"v{i}" for i in range(1, calls)), "y"]
        nodes = []
        for source, target in pairwise(names):
            if self.integers:
                inputs = [source, "scale", "zero", "w", "w_scale", "w_zero", "scale", "zero"]
                nodes.append(helper.make_node("QLinearConv", inputs, [target], **attributes))
            else:
                nodes.append(helper.make_node("Conv", [source, "w"], [target], **attributes))
        graph = helper.make_graph(
            nodes,
            "conv",
            [helper.make_tensor_value_info("x", element, [1, shape.channels, shape.height, shape.width])],
            [helper.make_tensor_value_info("y", element, [1, shape.out_channels, shape.out_height, shape.out_width])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        return bytes(model.SerializeToString())


def tflite_chain(shape: ConvShape, binary: bool) -> tuple[bytes, int, tuple[int, int, int]]:
    """A file of ``calls`` convolutions, that number, and its input [H, W, C]."""
    calls = CHAIN if shape.chains else 1
    _, w = signs(shape)
    weight = np.ascontiguousarray(w.transpose(0, 3, 1, 2))
    height, width, padding = shape.height, shape.width, shape.padding
    if shape.stride > 1:
        height, width = ((n - 1) * shape.stride + shape.kernel for n in (shape.out_height, shape.out_width))
        padding = 0
    nodes: list[g.Node] = []
    tensors = {"x0": g.TensorSpec((1, shape.channels, height, width))}
    for i in range(calls):
        source, target = f"x{i}", f"x{i + 1}"
        tensors[target] = g.TensorSpec((1, shape.out_channels, shape.out_height, shape.out_width))
        window: dict[str, Any] = {"stride": (shape.stride, shape.stride), "padding": (padding, padding)}
        bias = np.full(shape.out_channels, 0.5)
        if binary:
            tensors[f"b{i}"] = g.TensorSpec(tensors[source].shape, "bits")
            nodes.append(g.Binarize(name=f"sign{i}", inputs=(source,), output=f"b{i}"))
            ones = np.ones(shape.out_channels)
            nodes.append(
                g.BinaryConv2d(
                    name=f"conv{i}",
                    inputs=(f"b{i}",),
                    output=target,
                    weight=weight,
                    multiplier=ones,
                    bias=bias,
                    **window,
                )
            )
        else:
            scaled = weight / shape.channels
            nodes.append(g.Conv2d(name=f"conv{i}", inputs=(source,), output=target, weight=scaled, bias=bias, **window))
    graph = g.Graph(("x0",), (f"x{calls}",), nodes, tensors)
    return LceTarget().write(graph), calls, (height, width, shape.channels)


class LiteRt(Engine):
    """LiteRT with XNNPACK: float32, or int8 with a scale per output channel."""

    package = "ai-edge-litert"

    def __init__(self, integers: bool) -> None:
        self.integers = integers
        self.name = "litert int8" if integers else "litert fp32"

    def unavailable(self) -> str | None:
        return None if find_spec("ai_edge_litert") else "ai-edge-litert is not installed"

    def prepare(self, shape: ConvShape, threads: int) -> Prepared:
        from ai_edge_litert.interpreter import Interpreter

        data, calls, size = tflite_chain(shape, binary=False)
        value: NDArray[Any] = np.random.default_rng(0).standard_normal((1, *size)).astype(np.float32)
        if self.integers:
            data = quantized(data)
            value = np.clip(value * 32, -128, 127).astype(np.int8)
        interpreter: Any = Interpreter(model_content=data, num_threads=threads)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], value)
        return Prepared(interpreter.invoke, calls)


def quantized(data: bytes) -> bytes:
    """A file of float convolutions as int8 ones: activations in steps of 1/32, weights +-1 times a channel's scale."""
    kinds = schema().TensorType
    model = parse_model(data).raw
    for tensor in model.subgraphs[0].tensors:
        stored = model.buffers[tensor.buffer].data
        quantization = schema().QuantizationParametersT()
        if stored is None or len(stored) == 0:
            tensor.type = kinds.INT8
            quantization.scale, quantization.zeroPoint = [1 / 32], [0]
        elif len(tensor.shape) == 4:
            weights = np.frombuffer(bytes(stored), np.float32)
            scale = float(np.abs(weights).max())
            tensor.type = kinds.INT8
            tensor.buffer = _append(model, np.rint(weights / scale).astype(np.int8))
            quantization.scale = [scale] * int(tensor.shape[0])
            quantization.zeroPoint = [0] * int(tensor.shape[0])
        else:
            tensor.type = kinds.INT32
            tensor.buffer = _append(model, np.zeros(int(tensor.shape[0]), np.int32))
            scale = float(1 / 32 / np.prod(model.subgraphs[0].tensors[0].shape[3]))
            quantization.scale = [scale] * int(tensor.shape[0])
            quantization.zeroPoint = [0] * int(tensor.shape[0])
        tensor.quantization = quantization
    return serialize(model)


def _append(model: Any, values: NDArray[Any]) -> int:
    model.buffers.append(schema().BufferT())
    model.buffers[-1].data = np.frombuffer(values.tobytes(), np.uint8)
    return len(model.buffers) - 1


class LceEngine(Engine):
    """Larq Compute Engine: LceQuantize and LceBconv2d to floats, with its default or its indirect kernel."""

    package = "larq-compute-engine"

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.name = f"lce {kernel}"

    def unavailable(self) -> str | None:
        return Lce.unavailable()

    def prepare(self, shape: ConvShape, threads: int) -> Prepared:
        data, calls, size = tflite_chain(shape, binary=True)
        session = LceSession(parse_model(data), data, threads, self.kernel)
        value = np.random.default_rng(0).standard_normal((1, *size)).astype(np.float32)
        return Prepared(partial(session.stored_outputs, [value]), calls)


def all_engines() -> list[Engine]:
    """Ours first, then the others; also those that are not available here."""
    ours: list[Engine] = [Native(name) for name in native.kernel_names() if name not in ("portable", "reference")]
    kernels: tuple[Kernel, ...] = ("indirect", "default")
    return [
        *ours,
        *(LceEngine(kernel) for kernel in kernels),
        OnnxRuntime(True),
        LiteRt(True),
        OnnxRuntime(False),
        LiteRt(False),
        Torch(),
    ]
