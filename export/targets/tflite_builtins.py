"""Float graph nodes as TFLite builtin operators.

Tensors of rank 4 live as NHWC, all others as in the graph. Only PyTorch's row-major reshapes between maps and vectors
care about the difference. Every operator works for any batch size after ``resize_tensor_input``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ExportError
from bnnedge.export import graph as g
from bnnedge.export.targets.tflite_writer import ElementType, TfliteWriter
from bnnedge.export.targets.window import Windows
from bnnedge.kernels.layout import words_for

SAME, VALID = 0, 1
_FUSED = {(0.0, math.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
_ACTIVATION_CODES = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
_ELEMENTS: dict[g.Dtype, ElementType] = {"float32": "float32", "bits": "int32", "int8": "int8"}
_NHWC_AXIS = (0, 3, 1, 2)
"""Where axis i of an NCHW tensor is in NHWC."""
_LOWEST = float(np.finfo(np.float32).min)


class Lowering:
    """A graph on its way into a ``TfliteWriter``."""

    def __init__(self, graph: g.Graph) -> None:
        self.graph = graph
        self.writer = TfliteWriter()
        self.reasons: dict[str, str] = {}
        self.nhwc_columns: dict[str, tuple[int, ...]] = {}
        """Dense layers whose input is a flattened NHWC map: layer name to (C, H, W)."""
        self.tensors: dict[str, int] = {}
        self.fused: set[str] = set()
        """Names of nodes that the operator before them does already."""
        self.tensors[graph.input] = self.writer.tensor(graph.input, self.stored_shape(graph.input))

    def spec(self, tensor: str) -> g.TensorSpec:
        return self.graph.tensors[tensor]

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape in the graph for a batch of one."""
        return (1, *self.spec(tensor).shape[1:])

    def stored_shape(self, tensor: str) -> tuple[int, ...]:
        """Shape in the file for a batch of one."""
        shape = nhwc(self.shape(tensor))
        return (*shape[:-1], words_for(shape[-1])) if self.spec(tensor).dtype == "bits" else shape

    def source(self, node: g.Node, index: int = 0) -> int:
        return self.tensors[node.inputs[index]]

    def target(self, node: g.Node) -> int:
        """Declare the tensor that ``node`` writes."""
        spec = self.spec(node.output)
        index = self.writer.tensor(node.output, self.stored_shape(node.output), _ELEMENTS[spec.dtype])
        if spec.quantization is not None:
            self.writer.quantize(index, [spec.quantization.scale], spec.quantization.zero_point)
        self.tensors[node.output] = index
        return index

    def target_with_activation(self, node: g.Node) -> tuple[int, int]:
        """As ``target``, with the code of the activation to fuse: that of the clip which alone reads the output."""
        clip = self.graph.only_consumer(node.output)
        if isinstance(clip, g.Clip) and (clip.low, clip.high) in _FUSED:
            self.fused.add(clip.name)
            return self.target(clip), _ACTIVATION_CODES[_FUSED[clip.low, clip.high]]
        return self.target(node), 0

    def parameter(self, node: g.Node, role: str, values: NDArray[np.float64]) -> int:
        """A float32 constant called ``<node>/<role>``; ``ExportError`` if float32 cannot hold it."""
        with np.errstate(over="ignore"):
            narrow = np.ascontiguousarray(values, np.float32)
        if not np.isfinite(narrow).all():
            raise ExportError(f"{node.name}: {role} has a value that is not finite in float32; check the checkpoint")
        return self.writer.constant(f"{node.name}/{role}", narrow)

    def temporary(self, node: g.Node, role: str, shape: Sequence[int], element: ElementType = "float32") -> int:
        """A tensor inside the operators of one node."""
        return self.writer.tensor(f"{node.name}/{role}", shape, element)

    def integers(self, values: Any) -> int:
        """An int32 constant."""
        return self.writer.literal(np.ascontiguousarray(values, np.int32))

    def pad(self, node: g.Node, source: int, edges: NDArray[np.int32], value: float | int | None = None) -> int:
        """``source`` with constant ``edges`` [rank, 2] added: zeros, or ``value`` in the tensor's element type."""
        shape = [d + int(e.sum()) for d, e in zip(self.writer.shape(source), edges, strict=True)]
        element = self.writer.element(source)
        target = self.temporary(node, "padded", shape, element)
        self.writer.copy_quantization(source, target)
        if value is None:
            return self.writer.builtin("PAD", [source, self.integers(edges)], target)
        fill = self.writer.literal(np.array([value], element))
        return self.writer.builtin("PADV2", [source, self.integers(edges), fill], target)

    def windowed(
        self, node: g.Node, source: int, windows: Windows, value: float | int | None = None
    ) -> tuple[int, int]:
        """(tensor, padding code) that give PyTorch's windows; outside is 0, or ``value`` if SAME cannot say it."""
        if windows.is_padded and windows.is_same:
            return source, SAME
        if windows.is_padded:
            source = self.pad(node, source, windows.edges, value)
        return source, VALID

    def transpose(self, node: g.Node, source: int, axes: Sequence[int], target: int | None = None) -> int:
        """``source`` with axes permuted, into ``target`` or a temporary."""
        shape = [self.writer.shape(source)[a] for a in axes]
        target = self.temporary(node, "transposed", shape) if target is None else target
        return self.writer.builtin("TRANSPOSE", [source, self.integers(axes)], target)

    def reshape(self, source: int, target: int) -> int:
        """``source`` in the stored shape of ``target``, whatever the batch size."""
        shape = [-1, *self.writer.shape(target)[1:]]
        return self.writer.builtin("RESHAPE", [source, self.integers(shape)], target, newShape=shape)


def nhwc(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[N, C, H, W] as [N, H, W, C]; any other rank as it is."""
    return (shape[0], shape[2], shape[3], shape[1]) if len(shape) == 4 else shape


def is_order_free(shape: tuple[int, ...]) -> bool:
    """Whether NCHW and NHWC list the elements of a tensor in the same order."""
    return len(shape) != 4 or shape[1] == 1 or shape[2] * shape[3] == 1


@singledispatch
def lower(node: g.Node, low: Lowering) -> None:
    """Append the operators of one float graph node."""
    raise ExportError(f"{node.name}: {type(node).__name__} has no counterpart in TFLite")


def conv_windows(node: g.Conv2d | g.BinaryConv2d, low: Lowering) -> Windows:
    height, width = low.shape(node.inputs[0])[2:]
    kernel = (node.weight.shape[2], node.weight.shape[3])
    return Windows.of(node.name, (height, width), kernel, node.stride, node.padding, node.dilation)


@lower.register
def _(node: g.Conv2d, low: Lowering) -> None:
    low.reasons[node.name] = node.reason
    target, activation = low.target_with_activation(node)
    convolve(node, low, low.source(node), node.weight, node.bias, target, activation)


def convolve(
    node: g.Conv2d | g.BinaryConv2d,
    low: Lowering,
    source: int,
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    target: int,
    activation: int = 0,
) -> None:
    """Append a float convolution with the geometry of ``node``; weight OIHW, bias [O]."""
    source, padding = low.windowed(node, source, conv_windows(node, low))
    options = {
        "padding": padding,
        "strideH": node.stride[0],
        "strideW": node.stride[1],
        "dilationHFactor": node.dilation[0],
        "dilationWFactor": node.dilation[1],
        "fusedActivationFunction": activation,
    }
    channels = low.writer.shape(source)[3]
    operator, axes = "CONV_2D", (0, 2, 3, 1)
    if node.groups == channels > 1:
        operator, axes = "DEPTHWISE_CONV_2D", (1, 2, 3, 0)
        options["depthMultiplier"] = len(weight) // channels
    parameters = [low.parameter(node, "weight", weight.transpose(axes)), low.parameter(node, "bias", bias)]
    low.writer.builtin(operator, [source, *parameters], target, **options)


@lower.register
def _(node: g.SpaceToDepth, low: Lowering) -> None:
    low.writer.builtin("SPACE_TO_DEPTH", [low.source(node)], low.target(node), blockSize=2)


@lower.register
def _(node: g.Quantize, low: Lowering) -> None:
    low.writer.builtin("QUANTIZE", [low.source(node)], low.target(node))


@lower.register
def _(node: g.Dequantize, low: Lowering) -> None:
    low.writer.builtin("DEQUANTIZE", [low.source(node)], low.target(node))


@lower.register
def _(node: g.QuantizedConv2d, low: Lowering) -> None:
    low.reasons[node.name] = node.reason
    source, quantization = low.source(node), low.spec(node.inputs[0]).quantization
    assert quantization is not None
    edges = np.array([(0, 0), *node.edges, (0, 0)], np.int32)
    if edges.any():  # XNNPACK takes the PAD into the convolution
        source = low.pad(node, source, edges)
    weight = low.writer.constant(f"{node.name}/weight", np.ascontiguousarray(node.weight.transpose(0, 2, 3, 1)))
    low.writer.quantize(weight, node.weight_scale)
    bias = low.writer.constant(f"{node.name}/bias", node.bias)
    low.writer.quantize(bias, node.weight_scale * quantization.scale)
    options = {"strideH": node.stride[0], "strideW": node.stride[1], "dilationHFactor": 1, "dilationWFactor": 1}
    low.writer.builtin("CONV_2D", [source, weight, bias], low.target(node), padding=VALID, **options)


@lower.register
def _(node: g.Linear, low: Lowering) -> None:
    low.reasons[node.name] = node.reason
    weight = node.weight
    if node.name in low.nhwc_columns:
        weight = weight.reshape(-1, *low.nhwc_columns[node.name]).transpose(0, 2, 3, 1).reshape(weight.shape)
    target, activation = low.target_with_activation(node)
    parameters = [low.parameter(node, "weight", weight), low.parameter(node, "bias", node.bias)]
    low.writer.builtin("FULLY_CONNECTED", [low.source(node), *parameters], target, fusedActivationFunction=activation)


def per_channel(values: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    """[C] in a shape that broadcasts along axis 1 of a graph tensor of ``rank``, as it is stored."""
    return values if rank in (2, 4) else values.reshape(-1, *[1] * (rank - 2))


@lower.register
def _(node: g.Affine, low: Lowering) -> None:
    target, activation = low.target_with_activation(node)
    affine(node, low, low.source(node), node.multiplier, node.bias, target, activation)


def affine(
    node: g.Node,
    low: Lowering,
    source: int,
    multiplier: NDArray[np.float64],
    bias: NDArray[np.float64],
    target: int,
    activation: int = 0,
) -> None:
    """Append ``source * multiplier + bias`` per channel; a factor 1 or a bias 0 costs no operator."""
    shape = low.writer.shape(source)
    scaled = bool(np.any(multiplier != 1)) or not np.any(bias)
    shifted = bool(np.any(bias))
    if scaled:
        factor = low.parameter(node, "multiplier", per_channel(multiplier, len(shape)))
        product = low.temporary(node, "scaled", shape) if shifted else target
        fused = 0 if shifted else activation
        source = low.writer.builtin("MUL", [source, factor], product, fusedActivationFunction=fused)
    if shifted:
        shift = low.parameter(node, "bias", per_channel(bias, len(shape)))
        low.writer.builtin("ADD", [source, shift], target, fusedActivationFunction=activation)


@lower.register
def _(node: g.Clip, low: Lowering) -> None:
    source, target = low.source(node), low.target(node)
    if (node.low, node.high) in _FUSED:
        low.writer.builtin(_FUSED[node.low, node.high], [source], target)
        return
    floor = low.writer.literal(np.array([max(node.low, _LOWEST)], np.float32))
    if math.isinf(node.high):
        low.writer.builtin("MAXIMUM", [source, floor], target)
        return
    ceiling = low.writer.literal(np.array([node.high], np.float32))
    raised = low.temporary(node, "raised", low.writer.shape(source))
    low.writer.builtin("MAXIMUM", [source, floor], raised)
    low.writer.builtin("MINIMUM", [raised, ceiling], target)


@lower.register
def _(node: g.PRelu, low: Lowering) -> None:
    rank = len(low.shape(node.inputs[0]))
    slope = per_channel(node.slope, rank)
    # PRELU wants the rank of its input, less the batch dimension.
    slope = slope.reshape(*[1] * (rank - 1 - slope.ndim), *slope.shape)
    low.writer.builtin("PRELU", [low.source(node), low.parameter(node, "slope", slope)], low.target(node))


@lower.register
def _(node: g.Activation, low: Lowering) -> None:
    if node.kind == "softmax":
        if len(low.shape(node.inputs[0])) == 4:
            raise ExportError(f"{node.name}: softmax over the last axis needs [N, C], found a map; flatten it first")
        low.writer.builtin("SOFTMAX", [low.source(node)], low.target(node), beta=1.0)
    else:
        operator = {"sigmoid": "LOGISTIC", "tanh": "TANH"}[node.kind]
        low.writer.builtin(operator, [low.source(node)], low.target(node))


@lower.register(g.Add)
@lower.register(g.Sub)
@lower.register(g.Mul)
@lower.register(g.Div)
def _(node: g.Add | g.Sub | g.Mul | g.Div, low: Lowering) -> None:
    ranks = {len(low.shape(tensor)) for tensor in node.inputs}
    if len(ranks) > 1:
        raise ExportError(f"{node.name}: operands must have the same rank, found {sorted(ranks)}; unsqueeze one")
    target, activation = low.target_with_activation(node)
    operator = type(node).__name__.upper()
    sources = [low.source(node, 0), low.source(node, 1)]
    low.writer.builtin(operator, sources, target, fusedActivationFunction=activation)


@lower.register
def _(node: g.Sqrt, low: Lowering) -> None:
    low.writer.builtin("SQRT", [low.source(node)], low.target(node))


@lower.register
def _(node: g.Mean, low: Lowering) -> None:
    rank = len(low.shape(node.inputs[0]))
    stored = [_NHWC_AXIS[a] for a in node.axes] if rank == 4 else list(node.axes)
    source, axes = low.source(node), low.integers(sorted(stored))
    left = [a for a in range(rank) if a not in node.axes]
    left_stored = sorted(left, key=lambda a: _NHWC_AXIS[a]) if rank == 4 else left
    target = low.target(node)
    if node.keepdims or left == left_stored:
        low.writer.builtin("MEAN", [source, axes], target, keepDims=node.keepdims)
        return
    shape = [low.shape(node.inputs[0])[a] for a in left_stored]
    mean = low.writer.builtin("MEAN", [source, axes], low.temporary(node, "mean", shape), keepDims=False)
    low.transpose(node, mean, [left_stored.index(a) for a in left], target)


def _pool(node: g.MaxPool2d | g.AvgPool2d, low: Lowering, operator: str, padding: g.Pair) -> None:
    height, width = low.shape(node.inputs[0])[2:]
    windows = Windows.of(node.name, (height, width), node.kernel, node.stride, padding)
    quantization = low.spec(node.inputs[0]).quantization
    # PAD fills with the code of 0. Where that is the lowest, it is the faster way to say so: XNNPACK knows no PADV2.
    is_zero_lowest = quantization is not None and quantization.zero_point == g.LOWEST_CODE
    lowest = None if is_zero_lowest else _LOWEST if quantization is None else g.LOWEST_CODE
    source, code = low.windowed(node, low.source(node), windows, lowest)
    target, activation = low.target_with_activation(node)
    low.writer.builtin(
        operator,
        [source],
        target,
        padding=code,
        filterHeight=node.kernel[0],
        filterWidth=node.kernel[1],
        strideH=node.stride[0],
        strideW=node.stride[1],
        fusedActivationFunction=activation,
    )


@lower.register
def _(node: g.MaxPool2d, low: Lowering) -> None:
    _pool(node, low, "MAX_POOL_2D", node.padding)


@lower.register
def _(node: g.AvgPool2d, low: Lowering) -> None:
    _pool(node, low, "AVERAGE_POOL_2D", (0, 0))


@lower.register
def _(node: g.Reshape, low: Lowering) -> None:
    before, after = low.shape(node.inputs[0]), low.shape(node.output)
    source, target = low.source(node), low.target(node)
    reader = low.graph.only_consumer(node.output)
    if not is_order_free(before):
        if isinstance(reader, g.Linear):
            low.nhwc_columns[reader.name] = before[1:]
        else:
            source = low.transpose(node, source, (0, 3, 1, 2))
    if is_order_free(after):
        low.reshape(source, target)
    else:
        planes = low.reshape(source, low.temporary(node, "planes", after))
        low.transpose(node, planes, (0, 2, 3, 1), target)


@lower.register
def _(node: g.Subsample, low: Lowering) -> None:
    zeros, steps = low.integers([0, 0, 0, 0]), low.integers([1, *node.step, 1])
    inputs = [low.source(node), zeros, zeros, steps]
    low.writer.builtin("STRIDED_SLICE", inputs, low.target(node), beginMask=0b1111, endMask=0b1111)


@lower.register
def _(node: g.PadChannels, low: Lowering) -> None:
    rank = len(low.shape(node.inputs[0]))
    edges = np.zeros((rank, 2), np.int32)
    edges[3 if rank == 4 else 1] = node.before, node.after
    low.writer.builtin("PAD", [low.source(node), low.integers(edges)], low.target(node))


@lower.register
def _(node: g.Concat, low: Lowering) -> None:
    axis = 3 if len(low.shape(node.output)) == 4 else 1
    sources = [low.tensors[tensor] for tensor in node.inputs]
    low.writer.builtin("CONCATENATION", sources, low.target(node), axis=axis)
