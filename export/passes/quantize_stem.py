"""The float stem in int8: what stands before the first binary layer becomes integer arithmetic of 8 bits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ExportError
from bnnedge.export.graph import (
    HIGHEST_CODE,
    LOWEST_CODE,
    Affine,
    Clip,
    Conv2d,
    Dequantize,
    FloatArray,
    Graph,
    MaxPool2d,
    Node,
    Pair,
    Quantization,
    Quantize,
    QuantizedConv2d,
    SpaceToDepth,
    TensorSpec,
)
from bnnedge.export.window import Windows

Range = tuple[float, float]
STEPS = HIGHEST_CODE - LOWEST_CODE
SMALLEST_MULTIPLIER, LARGEST_MULTIPLIER = 2.0**-16, 256.0
"""Bounds of a multiplier of ``QuantizedConv2d``. With the lower one every accumulator that is not saturated is below
2^24; XNNPACK accepts multipliers below the upper one."""
FEW_CHANNELS = 4
"""The most input channels with which a convolution of stride 2 runs faster behind ``SpaceToDepth``."""


@dataclass(frozen=True)
class Calibration:
    """What the ranges of the int8 codes are taken from."""

    images: NDArray[np.float32]
    """Typical inputs [N, C, H, W]."""
    input_range: Range | None = None
    """Smallest and largest value that an input can have; None takes those of ``images``."""
    output_range: Range | None = None
    """Smallest and largest value of the stem's output. None takes the bounds of its clip; without a clip the values are
    computed for ``images``."""


def quantize_stem(graph: Graph, calibration: Calibration) -> Graph:
    """The convolution that alone reads the input, its clip and its max-pool in int8; the rest reads floats as before.

    Weights are symmetric with a scale for each output channel. The input's zero is a code, since padding needs it. The
    output's codes span its range exactly, [-1, 1] after a hard-tanh; the lowest code is the lower bound, so that zero
    padding of codes is outside of every maximum. Where the range has both signs, 0 lies midway between two codes: the
    rounding of the output turns no sign.

    The bias takes up the mean error that rounding input and weights makes on the calibration images (Nagel et al. 2019,
    "Data-free quantization", arXiv:1906.04721, section 4.2). For images of one channel, whose pixels are all codes but
    for a constant, that makes the input exact away from the borders.

    Raises ``ExportError`` if there is no such convolution or it cannot be quantized.
    """
    conv = _first_convolution(graph)
    images = calibration.images
    clip = graph.only_consumer(conv.output)
    clip = clip if isinstance(clip, Clip) and _is_spanned(clip) else None
    last: Node = clip or conv
    pool = graph.only_consumer(last.output)
    pool = pool if isinstance(pool, MaxPool2d) else None

    source = _input_quantization(calibration.input_range or _range(images))
    low, scale = _output_codes(calibration.output_range or _output_range(conv, clip, images))
    entry, codes, middle = f"{graph.input}/codes", f"{last.output}/codes", f"{last.output}/from_lowest"
    shapes = {name: spec.shape for name, spec in graph.tensors.items()}
    tensors = dict(graph.tensors)
    quantized = _convolution(conv, clip, source, images, low, scale, shapes[graph.input][2:])
    quantized.inputs, quantized.output = (entry,), codes
    nodes: list[Node] = []
    folded = _folded(quantized, shapes[graph.input])
    image = graph.input
    if folded is not None:
        quantized, image = folded, f"{graph.input}/folded"
        nodes.append(SpaceToDepth(name="stem/space_to_depth", inputs=(graph.input,), output=image))
        n, c, h, w = shapes[graph.input]
        tensors[image] = TensorSpec((n, 4 * c, h // 2, w // 2))
    tensors[entry] = TensorSpec(tensors[image].shape, "int8", source)
    target = Quantization(scale, LOWEST_CODE)
    tensors[codes] = TensorSpec(shapes[conv.output], "int8", target)
    nodes += [Quantize(name="stem/quantize", inputs=(image,), output=entry), quantized]
    output = last.output
    if pool is not None:
        pooled = replace(pool, inputs=(codes,), output=f"{pool.output}/codes")
        tensors[pooled.output] = TensorSpec(shapes[pool.output], "int8", target)
        nodes.append(pooled)
        codes, middle, output = pooled.output, f"{pool.output}/from_lowest", pool.output
    if low == 0:
        nodes.append(Dequantize(name="stem/dequantize", inputs=(codes,), output=output))
    else:
        channels = len(conv.bias)
        tensors[middle] = TensorSpec(shapes[output])
        nodes.append(Dequantize(name="stem/dequantize", inputs=(codes,), output=middle))
        nodes.append(
            Affine(
                name="stem/lowest",
                inputs=(middle,),
                output=output,
                multiplier=np.ones(channels),
                bias=np.full(channels, low),
            )
        )
    gone = [conv, clip, pool]
    rest = [node for node in graph.nodes if not any(node is g for g in gone)]
    return replace(graph, nodes=[*nodes, *rest], tensors=tensors).validate()


def float_stem(conv: Conv2d, clip: Clip | None, images: NDArray[np.float32]) -> FloatArray:
    """What the float nodes give for ``images``, in float64."""
    # PyTorch is imported here, since devices without it read and write files.
    import torch
    from torch.nn import functional as F

    x, weight, bias = (torch.from_numpy(np.asarray(a, np.float64)) for a in (images, conv.weight, conv.bias))
    y = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    values: FloatArray = (y if clip is None else y.clamp(clip.low, clip.high)).numpy()
    return values


def _first_convolution(graph: Graph) -> Conv2d:
    conv = graph.only_consumer(graph.input)
    if not isinstance(conv, Conv2d):
        readers = ", ".join(f"{n.name} ({type(n).__name__})" for n in graph.consumers(graph.input))
        raise ExportError(f"no int8 stem: the input should be read by one float convolution, found {readers or 'none'}")
    if conv.groups != 1 or conv.dilation != (1, 1):
        raise ExportError(
            f"no int8 stem: {conv.name} has {conv.groups} groups and dilation {conv.dilation}; "
            "a stem without either can be quantized, export this one with --stem fp32"
        )
    return conv


def _is_spanned(clip: Clip) -> bool:
    """Whether the range of the codes can be that of the clip: 0 must be the clip's lower bound or its middle."""
    return clip.low == 0 or (clip.low == -clip.high and math.isfinite(clip.high))


def _range(values: NDArray[np.float32] | FloatArray) -> Range:
    return float(values.min()), float(values.max())


def _output_range(conv: Conv2d, clip: Clip | None, images: NDArray[np.float32]) -> Range:
    if clip is not None and math.isfinite(clip.high):
        return clip.low, clip.high
    return _range(float_stem(conv, clip, images))


def _scale(name: str, span: float) -> float:
    scale = float(np.float32(span / STEPS))
    if not 0 < scale < math.inf:
        raise ExportError(f"no int8 stem: the {name} should vary over the calibration images, its range is {span:g}")
    return scale


def _input_quantization(bounds: Range) -> Quantization:
    low, high = min(0.0, bounds[0]), max(0.0, bounds[1])
    scale = _scale("input", high - low)
    return Quantization(scale, round(LOWEST_CODE - low / scale))


def _output_codes(bounds: Range) -> tuple[float, float]:
    """(value of the lowest code, scale) with 0 as the lowest value or midway between two codes."""
    low, high = min(0.0, bounds[0]), max(0.0, bounds[1])
    scale = _scale("stem's output", high - low)
    return (0.0 if low == 0 else -scale * (math.floor(-low / scale) + 0.5)), scale


def quantize(values: NDArray[np.float32] | FloatArray, parameters: Quantization) -> FloatArray:
    """The nearest codes, ties to even, as ``Quantize`` means them."""
    codes = np.rint(values / np.float64(parameters.scale)) + parameters.zero_point
    nearest: FloatArray = np.clip(codes, LOWEST_CODE, HIGHEST_CODE)
    return nearest


def _convolution(
    conv: Conv2d,
    clip: Clip | None,
    source: Quantization,
    images: NDArray[np.float32],
    low: float,
    scale: float,
    size: tuple[int, ...],
) -> QuantizedConv2d:
    largest = np.abs(conv.weight).max(axis=(1, 2, 3))
    smallest_scale = SMALLEST_MULTIPLIER * scale / source.scale
    weight_scale = np.maximum(largest / 127, smallest_scale).astype(np.float32).astype(np.float64)
    if (weight_scale * source.scale / scale).max() >= LARGEST_MULTIPLIER:
        raise ExportError(f"no int8 stem: the weights of {conv.name} are too large for its output's range")
    codes = np.clip(np.rint(conv.weight / weight_scale[:, None, None, None]), -127, 127)
    rounded_weight = codes * weight_scale[:, None, None, None]
    rounded = (quantize(images, source) - source.zero_point) * source.scale
    mean, rounded_mean = images.mean((0, 2, 3), np.float64), rounded.mean((0, 2, 3))
    lost = conv.weight.sum((2, 3)) @ mean - rounded_weight.sum((2, 3)) @ rounded_mean
    # Beyond 2^28 every code is saturated whatever the image; the sum stays inside 32 bits.
    bias = np.clip(np.rint((conv.bias + lost - low) / (source.scale * weight_scale)), -(2.0**28), 2.0**28)
    kernel = (conv.weight.shape[2], conv.weight.shape[3])
    windows = Windows.of(conv.name, (size[0], size[1]), kernel, conv.stride, conv.padding)
    return QuantizedConv2d(
        name=conv.name,
        inputs=(),
        output="",
        weight=codes.astype(np.int8),
        weight_scale=weight_scale,
        bias=bias.astype(np.int32),
        stride=conv.stride,
        edges=(windows.rows.edges, windows.columns.edges),
        stands_for=(conv, clip),
        lowest=low,
    )


def _folded(conv: QuantizedConv2d, shape: tuple[int, ...]) -> QuantizedConv2d | None:
    """``conv`` as a convolution of stride 1 on the image folded 2x2 into channels; None where that gains nothing.

    Tap t of a filter that starts at pixel -p reads pixel 2 i - p + t = 2 (i + b) + r, so it becomes tap b of phase r.
    """
    outputs, channels, *kernel = conv.weight.shape
    if conv.stride != (2, 2) or channels > FEW_CHANNELS or shape[2] % 2 or shape[3] % 2 or min(kernel) < 2:
        return None
    blocks, edges = [], list[Pair]()
    for size, taps, (before, after) in zip(shape[2:], kernel, conv.edges, strict=True):
        positions = np.arange(taps) - before
        first, last = int(positions[0] // 2), int(positions[-1] // 2)
        count = (size + before + after - taps) // 2 + 1
        behind = count - 1 + last - (size // 2 - 1)
        if behind < 0:  # no window reaches the last pixels
            return None
        blocks.append((positions // 2 - first, positions % 2, last - first + 1))
        edges.append((-first, behind))
    (rows, row_phase, height), (columns, column_phase, width) = blocks
    weight = np.zeros((outputs, 2, 2, channels, height, width), np.int8)
    for t in range(kernel[0]):
        for u in range(kernel[1]):
            weight[:, row_phase[t], column_phase[u], :, rows[t], columns[u]] = conv.weight[:, :, t, u]
    return replace(
        conv,
        weight=weight.reshape(outputs, 4 * channels, height, width),
        stride=(1, 1),
        edges=(edges[0], edges[1]),
        reason=f"{conv.reason}; a {kernel[0]}x{kernel[1]} filter on the image folded 2x2",
    )
