"""LiteRT's own convolutions, and Larq Compute Engine's."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.benchmarks.ops.engine import CHAIN, Engine, Prepared, signs
from bnnedge.benchmarks.ops.shapes import ConvShape
from bnnedge.export import graph as g
from bnnedge.export.runtimes.lce import Kernel, Lce, LceSession
from bnnedge.export.targets.tflite.reader import parse_model
from bnnedge.export.targets.tflite.target import LceTarget
from bnnedge.export.targets.tflite.writer import schema, serialize


def tflite_chain(shape: ConvShape, binary: bool) -> tuple[bytes, int, tuple[int, int, int]]:
    """A file of a chain of convolutions, how many there are, and the shape [H, W, C] of its input.

    TFLite has no symmetric padding at stride 2; there the file takes the padded image instead, which is less work.
    """
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
    """``data``, a file of float convolutions, with int8 ones.

    Activations are in steps of 1/32; weights are +-1 times the scale of their channel.
    """
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
    """Larq Compute Engine's LceQuantize and LceBconv2d with float output, by its default or its indirect kernel."""

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
