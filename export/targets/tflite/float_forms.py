"""How each node that reads float32 or int8 is written in TFLite: builtin operators, and LCE's for signs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ExportError
from bnnedge.export import graph as g
from bnnedge.export.targets.forms import Forms
from bnnedge.export.targets.tflite.lowering import (
    FUSED,
    LOWEST,
    NHWC_AXIS,
    VALID,
    Lowering,
    conv_windows,
    is_order_free,
)
from bnnedge.export.window import Windows

FLOAT_FORMS = Forms[Lowering]("lce")


@FLOAT_FORMS.register(g.Conv2d)
def _conv2d(node: g.Conv2d, low: Lowering) -> None:
    low.reasons[node.name] = node.reason
    target, activation = low.target_with_activation(node)
    convolve(node, low, low.numbers(node), node.weight, node.bias, target, activation)


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


@FLOAT_FORMS.register(g.SpaceToDepth)
def _space_to_depth(node: g.SpaceToDepth, low: Lowering) -> None:
    low.writer.builtin("SPACE_TO_DEPTH", [low.numbers(node)], low.target(node), blockSize=2)


@FLOAT_FORMS.register(g.Quantize)
def _quantize(node: g.Quantize, low: Lowering) -> None:
    low.writer.builtin("QUANTIZE", [low.numbers(node)], low.target(node))


@FLOAT_FORMS.register(g.Dequantize)
def _dequantize(node: g.Dequantize, low: Lowering) -> None:
    low.writer.builtin("DEQUANTIZE", [low.numbers(node)], low.target(node))


@FLOAT_FORMS.register(g.QuantizedConv2d)
def _quantized_conv2d(node: g.QuantizedConv2d, low: Lowering) -> None:
    low.reasons[node.name] = node.reason
    source, quantization = low.numbers(node), low.spec(node.inputs[0]).quantization
    assert quantization is not None
    edges = np.array([(0, 0), *node.edges, (0, 0)], np.int32)
    if edges.any():  # XNNPACK fuses the PAD into the convolution
        source = low.pad(node, source, edges)
    weight = low.writer.constant(f"{node.name}/weight", np.ascontiguousarray(node.weight.transpose(0, 2, 3, 1)))
    low.writer.quantize(weight, node.weight_scale)
    bias = low.writer.constant(f"{node.name}/bias", node.bias)
    low.writer.quantize(bias, node.weight_scale * quantization.scale)
    options = {"strideH": node.stride[0], "strideW": node.stride[1], "dilationHFactor": 1, "dilationWFactor": 1}
    low.writer.builtin("CONV_2D", [source, weight, bias], low.target(node), padding=VALID, **options)


@FLOAT_FORMS.register(g.Linear)
def _linear(node: g.Linear, low: Lowering) -> None:
    low.reasons[node.name] = node.reason
    weight = node.weight
    if node.name in low.nhwc_columns:
        weight = weight.reshape(-1, *low.nhwc_columns[node.name]).transpose(0, 2, 3, 1).reshape(weight.shape)
    target, activation = low.target_with_activation(node)
    parameters = [low.parameter(node, "weight", weight), low.parameter(node, "bias", node.bias)]
    low.writer.builtin("FULLY_CONNECTED", [low.numbers(node), *parameters], target, fusedActivationFunction=activation)


def per_channel(values: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    """``values`` [C] in a shape that broadcasts along axis 1 of a stored tensor of ``rank``."""
    return values if rank in (2, 4) else values.reshape(-1, *[1] * (rank - 2))


@FLOAT_FORMS.register(g.Affine)
def _affine(node: g.Affine, low: Lowering) -> None:
    target, activation = low.target_with_activation(node)
    affine(node, low, low.numbers(node), node.multiplier, node.bias, target, activation)


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


@FLOAT_FORMS.register(g.Clip)
def _clip(node: g.Clip, low: Lowering) -> None:
    source, target = low.numbers(node), low.target(node)
    if (node.low, node.high) in FUSED:
        low.writer.builtin(FUSED[node.low, node.high], [source], target)
        return
    floor = low.writer.literal(np.array([max(node.low, LOWEST)], np.float32))
    if math.isinf(node.high):
        low.writer.builtin("MAXIMUM", [source, floor], target)
        return
    ceiling = low.writer.literal(np.array([node.high], np.float32))
    raised = low.temporary(node, "raised", low.writer.shape(source))
    low.writer.builtin("MAXIMUM", [source, floor], raised)
    low.writer.builtin("MINIMUM", [raised, ceiling], target)


@FLOAT_FORMS.register(g.PRelu)
def _p_relu(node: g.PRelu, low: Lowering) -> None:
    rank = len(low.shape(node.inputs[0]))
    slope = per_channel(node.slope, rank)
    # The slope of PRELU has the rank of the input less the batch dimension.
    slope = slope.reshape(*[1] * (rank - 1 - slope.ndim), *slope.shape)
    low.writer.builtin("PRELU", [low.numbers(node), low.parameter(node, "slope", slope)], low.target(node))


@FLOAT_FORMS.register(g.Activation)
def _activation(node: g.Activation, low: Lowering) -> None:
    if node.kind == "softmax":
        if len(low.shape(node.inputs[0])) == 4:
            raise ExportError(f"{node.name}: softmax over the last axis needs [N, C], found a map; flatten it first")
        low.writer.builtin("SOFTMAX", [low.numbers(node)], low.target(node), beta=1.0)
    else:
        operator = {"sigmoid": "LOGISTIC", "tanh": "TANH"}[node.kind]
        low.writer.builtin(operator, [low.numbers(node)], low.target(node))


@FLOAT_FORMS.register(g.Add, g.Sub, g.Mul, g.Div)
def _arithmetic(node: g.Add | g.Sub | g.Mul | g.Div, low: Lowering) -> None:
    ranks = {len(low.shape(tensor)) for tensor in node.inputs}
    if len(ranks) > 1:
        raise ExportError(f"{node.name}: operands must have the same rank, found {sorted(ranks)}; unsqueeze one")
    target, activation = low.target_with_activation(node)
    operator = type(node).__name__.upper()
    sources = [low.numbers(node, 0), low.numbers(node, 1)]
    low.writer.builtin(operator, sources, target, fusedActivationFunction=activation)


@FLOAT_FORMS.register(g.Sqrt)
def _sqrt(node: g.Sqrt, low: Lowering) -> None:
    low.writer.builtin("SQRT", [low.numbers(node)], low.target(node))


@FLOAT_FORMS.register(g.Mean)
def _mean(node: g.Mean, low: Lowering) -> None:
    rank = len(low.shape(node.inputs[0]))
    stored = [NHWC_AXIS[a] for a in node.axes] if rank == 4 else list(node.axes)
    source, axes = low.numbers(node), low.integers(sorted(stored))
    left = [a for a in range(rank) if a not in node.axes]
    left_stored = sorted(left, key=lambda a: NHWC_AXIS[a]) if rank == 4 else left
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
    # PAD fills with the code of 0. Where that is the lowest code, PAD is faster than PADV2, which XNNPACK lacks.
    is_zero_lowest = quantization is not None and quantization.zero_point == g.LOWEST_CODE
    lowest = None if is_zero_lowest else LOWEST if quantization is None else g.LOWEST_CODE
    source, code = low.windowed(node, low.numbers(node), windows, lowest)
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


@FLOAT_FORMS.register(g.MaxPool2d)
def _max_pool2d(node: g.MaxPool2d, low: Lowering) -> None:
    _pool(node, low, "MAX_POOL_2D", node.padding)


@FLOAT_FORMS.register(g.AvgPool2d)
def _avg_pool2d(node: g.AvgPool2d, low: Lowering) -> None:
    _pool(node, low, "AVERAGE_POOL_2D", (0, 0))


@FLOAT_FORMS.register(g.Reshape)
def _reshape(node: g.Reshape, low: Lowering) -> None:
    before, after = low.shape(node.inputs[0]), low.shape(node.output)
    source, target = low.numbers(node), low.target(node)
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


@FLOAT_FORMS.register(g.Subsample)
def _subsample(node: g.Subsample, low: Lowering) -> None:
    zeros, steps = low.integers([0, 0, 0, 0]), low.integers([1, *node.step, 1])
    inputs = [low.numbers(node), zeros, zeros, steps]
    low.writer.builtin("STRIDED_SLICE", inputs, low.target(node), beginMask=0b1111, endMask=0b1111)


@FLOAT_FORMS.register(g.PadChannels)
def _pad_channels(node: g.PadChannels, low: Lowering) -> None:
    rank = len(low.shape(node.inputs[0]))
    edges = np.zeros((rank, 2), np.int32)
    edges[3 if rank == 4 else 1] = node.before, node.after
    low.writer.builtin("PAD", [low.numbers(node), low.integers(edges)], low.target(node))


@FLOAT_FORMS.register(g.Concat)
def _concat(node: g.Concat, low: Lowering) -> None:
    axis = 3 if len(low.shape(node.output)) == 4 else 1
    sources = [low.numbers(node, index) for index in range(len(node.inputs))]
    low.writer.builtin("CONCATENATION", sources, low.target(node), axis=axis)


@FLOAT_FORMS.register(g.Binarize)
def _binarize(node: g.Binarize, low: Lowering) -> None:
    low.writer.custom("LceQuantize", [low.numbers(node)], low.target(node))
