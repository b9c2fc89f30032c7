"""How each node that reads packed bits is written, in Larq Compute Engine's operators.

``LceBconv2d`` counts differing bits p, so the integer sum is s = K - 2 p. It knows VALID and SAME windows only, and its
zero-padding only for a float result. PyTorch's symmetric zero-padding is written in one of these ways:

1. no padding: VALID, with a float or a bit result;
2. SAME means the same windows: SAME with ``pad_values`` 0. Its kernels go wrong without an error where the filter
   reaches beyond the whole map, and the reference kernel where the channel count is odd; those take way 3;
3. builtin PAD of the packed words with 0, which is +1 in every channel; then VALID; then the part of the sum that the
   added pixels contributed is taken away: ``- multiplier[o] * (sum of the filter's values outside the image)``. Few
   rows and columns of that map differ, so the file holds these alone and two GATHERs unfold them.

A bit result of a padded layer is the float result ``s - threshold``, exact in float32, followed by ``LceQuantize``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnnedge.export import graph as g
from bnnedge.export.targets.forms import Forms
from bnnedge.export.targets.tflite.float_forms import affine, convolve
from bnnedge.export.targets.tflite.lowering import SAME, VALID, Lowering, conv_windows, is_order_free, nhwc
from bnnedge.export.targets.tflite.writer import ABSENT
from bnnedge.export.window import Window, Windows
from bnnedge.kernels.layout import WORD_BITS, pack_filter

GROUPS_REASON = "{groups} groups of {channels} channels: LCE needs a multiple of 32 channels in a group"

BIT_FORMS = Forms[Lowering]("lce", " of packed bits")


def bconv2d_options(channels: int, stride: g.Pair, dilation: g.Pair, padding: int, pad_values: int = 0) -> bytes:
    """``custom_options`` of LceBconv2d without an activation. ``pad_values`` is what SAME ``padding`` adds, 0 or +1."""
    return _flexbuffer(
        channels_in=channels,
        dilation_height_factor=dilation[0],
        dilation_width_factor=dilation[1],
        fused_activation_function=0,
        pad_values=pad_values,
        padding=padding,
        stride_height=stride[0],
        stride_width=stride[1],
    )


def bmaxpool2d_options(kernel: g.Pair, stride: g.Pair, padding: int) -> bytes:
    """``custom_options`` of LceBMaxPool2d."""
    return _flexbuffer(
        padding=padding,
        stride_width=stride[1],
        stride_height=stride[0],
        filter_width=kernel[1],
        filter_height=kernel[0],
    )


def _flexbuffer(**values: int) -> bytes:
    # The keys keep their order in the bytes; it is that of LCE's converter.
    from flatbuffers import flexbuffers

    builder = flexbuffers.Builder()
    with builder.Map():
        for key, value in values.items():
            builder.Int(key, value)
    return bytes(builder.Finish())


@BIT_FORMS.register(g.MaxPool2d)
def _max_pool2d(node: g.MaxPool2d, low: Lowering) -> None:
    height, width = low.shape(node.inputs[0])[2:]
    windows = Windows.of(node.name, (height, width), node.kernel, node.stride, node.padding)
    # A padding word of ones is -1 in every channel, which never wins. The AND with a pixel clears its spare bits.
    source, padding = low.windowed(node, low.source(node), windows, -1)
    low.writer.custom(
        "LceBMaxPool2d", [source], low.target(node), bmaxpool2d_options(node.kernel, node.stride, padding)
    )


@BIT_FORMS.register(g.Reshape)
def _reshape(node: g.Reshape, low: Lowering) -> None:
    before, after = low.shape(node.inputs[0]), low.shape(node.output)
    if is_order_free(before) and is_order_free(after) and nhwc(before)[-1] == nhwc(after)[-1]:
        low.reshape(low.source(node), low.target(node))
        return
    signs = low.dequantized(node, node.inputs[0])
    if not is_order_free(before):
        signs = low.transpose(node, signs, (0, 3, 1, 2))
    signs = low.reshape(signs, low.temporary(node, "reshaped", after))
    if len(after) == 4:
        signs = low.transpose(node, signs, (0, 2, 3, 1), low.temporary(node, "map", nhwc(after)))
    low.writer.custom("LceQuantize", [signs], low.target(node))


@BIT_FORMS.register(g.BinaryConv2d)
def _binary_conv2d(node: g.BinaryConv2d, low: Lowering) -> None:
    threshold = None if node.threshold is None else _reachable(node.threshold, node.fan_in)
    group_channels = node.weight.shape[1]
    as_float = node.groups > 1 and group_channels % WORD_BITS != 0
    if threshold is None:
        write = _signs_in_float if as_float else _floats
        write(node, low, node.multiplier, node.bias, low.target(node))
    elif as_float or conv_windows(node, low).is_padded:
        write = _signs_in_float if as_float else _floats
        shape = nhwc(low.shape(node.output))
        # s - t is exact in float32, and equal numbers give +0, which is taken for +1 as it must be.
        difference = low.temporary(node, "above_threshold", shape)
        write(node, low, np.ones(len(threshold)), -threshold.astype(np.float64), difference)
        low.writer.custom("LceQuantize", [difference], low.target(node))
    else:
        _bits(node, low, threshold)
    if as_float:
        low.reasons[node.name] = GROUPS_REASON.format(groups=node.groups, channels=group_channels)


def _reachable(threshold: NDArray[np.int32], fan_in: int) -> NDArray[np.int64]:
    """Thresholds clipped to [-K, K + 1], beyond which they decide alike, so that float32 holds them."""
    return np.clip(threshold.astype(np.int64), -fan_in, fan_in + 1)


def _bconv2d(node: g.BinaryConv2d, low: Lowering, source: int, affine: list[int], target: int, padding: int) -> int:
    weight = low.writer.constant(f"{node.name}/weight", pack_filter(node.weight).view(np.int32))
    channels = low.shape(node.inputs[0])[1]
    options = bconv2d_options(channels, node.stride, node.dilation, padding)
    return low.writer.custom("LceBconv2d", [source, weight, *affine], target, options)


def _bits(node: g.BinaryConv2d, low: Lowering, threshold: NDArray[np.int64]) -> None:
    # s < t  <=>  K - 2 p < t  <=>  p > floor((K - t) / 2)
    tau = ((node.fan_in - threshold) // 2).astype(np.int32)
    limits = low.writer.constant(f"{node.name}/threshold", tau)
    _bconv2d(node, low, low.source(node), [ABSENT, ABSENT, limits], low.target(node), VALID)


def _floats(
    node: g.BinaryConv2d, low: Lowering, multiplier: NDArray[np.float64], bias: NDArray[np.float64], target: int
) -> None:
    """``s * multiplier + bias`` with zero-padding, by the ways 1 to 3 of the module's docstring."""
    windows, source = conv_windows(node, low), low.source(node)
    parameters = [low.parameter(node, "multiplier", multiplier), low.parameter(node, "bias", bias), ABSENT]
    if not windows.is_padded:
        _bconv2d(node, low, source, parameters, target, VALID)
    elif windows.is_same and _same_is_safe(windows, node.weight.shape[1]):
        _bconv2d(node, low, source, parameters, target, SAME)
    else:
        padded = low.pad(node, source, windows.edges)
        one_padded = low.temporary(node, "one_padded", low.writer.shape(target))
        _bconv2d(node, low, padded, parameters, one_padded, VALID)
        correction = _correction(node, low, windows, multiplier)
        low.writer.builtin("ADD", [one_padded, correction], target)


def _same_is_safe(windows: Windows, group_channels: int) -> bool:
    fits = all(axis.extent <= axis.size for axis in (windows.rows, windows.columns))
    return fits and group_channels % 2 == 0


def _correction(node: g.BinaryConv2d, low: Lowering, windows: Windows, multiplier: NDArray[np.float64]) -> int:
    """The negated contribution of the padding pixels +1 to the result, in a shape that broadcasts to [N, OH, OW, O]."""
    row_kinds, row_index = _distinct_windows(windows.rows)
    column_kinds, column_index = _distinct_windows(windows.columns)
    taps = node.weight.sum(axis=1, dtype=np.float64)  # [O, kh, kw]
    inside = np.einsum("rh,cw,ohw->rco", row_kinds, column_kinds, taps)
    table = multiplier * (inside - taps.sum(axis=(1, 2)))
    correction = low.parameter(node, "padding_correction", table[None])
    for axis, index in ((1, row_index), (2, column_index)):
        kinds = low.writer.shape(correction)[axis]
        if kinds in (1, len(index)):  # one kind broadcasts; as many kinds as windows are in order
            continue
        shape = list(low.writer.shape(correction))
        shape[axis] = len(index)
        unfolded = low.temporary(node, f"padding_correction_{axis}", shape)
        correction = low.writer.builtin("GATHER", [correction, low.integers(index)], unfolded, axis=axis)
    return correction


def _distinct_windows(window: Window) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """The distinct masks [kinds, kernel] of the taps inside the image, and which of them each window has.

    Kinds are numbered in the order in which they first appear.
    """
    masks = window.inside()
    kinds: dict[bytes, int] = {}
    index = [kinds.setdefault(mask.tobytes(), len(kinds)) for mask in masks]
    first = [index.index(kind) for kind in range(len(kinds))]
    return masks[first].astype(np.float64), np.array(index, np.int32)


def _signs_in_float(
    node: g.BinaryConv2d, low: Lowering, multiplier: NDArray[np.float64], bias: NDArray[np.float64], target: int
) -> None:
    """``s * multiplier + bias`` by a float convolution of the unpacked signs.

    Its sums of +-1 are exact in any order.
    """
    signs = low.dequantized(node, node.inputs[0])
    sums = low.temporary(node, "sums", low.writer.shape(target))
    # A bias of zeros is given, since LCE's depthwise kernel crashes without one.
    convolve(node, low, signs, node.weight.astype(np.float64), np.zeros(len(multiplier)), sums)
    affine(node, low, sums, multiplier, bias, target)
