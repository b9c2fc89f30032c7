"""The slow, obvious version of every packed operation; the fast ones are compared with it and nothing else.

All results are integers or bits and therefore exact. The layout of the words is that of ``layout.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ConfigError
from bnnedge.kernels.geometry import BConv2dGeometry, Pair, check_pool
from bnnedge.kernels.layout import Words, pack, unpack


def bconv2d(
    words: Words,
    filters: Words,
    channels: int,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    pad_value: int = 0,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> NDArray[np.int32]:
    """Binary convolution ``s[n, y, x, o] = sum over taps and channels of a * w``, a and w in {-1, +1}.

    ``words``     uint32 [N, H, W, ceil(C/32)], packed activations
    ``filters``   uint32 [O, kh, kw, ceil(C/groups/32)], packed weights
    ``channels``  C, all groups together; the words alone do not tell it
    ``stride``, ``padding``, ``dilation``  (vertical, horizontal); padding is the same on both sides
    ``pad_value`` 0: taps outside the image add nothing; 1: outside is +1
    ``groups``    C / groups is a multiple of 32 if groups > 1

    Returns int32 [N, OH, OW, O] with ``OH = (H + 2 p - d (kh - 1) - 1) // s + 1``. Raises ``ConfigError``.
    """
    geometry = BConv2dGeometry.check(words, filters, channels, stride, padding, pad_value, dilation, groups)
    signs = unpack(words, channels).astype(np.int32)
    weights = unpack(filters, geometry.group_channels).astype(np.int32)
    (pad_y, pad_x), (step_y, step_x), (out_h, out_w) = padding, stride, (geometry.out_height, geometry.out_width)
    edges = ((0, 0), (pad_y, pad_y), (pad_x, pad_x), (0, 0))
    padded = np.pad(signs, edges, constant_values=pad_value)

    sums = np.zeros(geometry.output_shape, np.int32)
    out_per_group = geometry.out_channels // groups
    for group in range(groups):
        inputs = slice(group * geometry.group_channels, (group + 1) * geometry.group_channels)
        outputs = slice(group * out_per_group, (group + 1) * out_per_group)
        for ky in range(geometry.kernel[0]):
            for kx in range(geometry.kernel[1]):
                top, left = ky * dilation[0], kx * dilation[1]
                rows = slice(top, top + step_y * (out_h - 1) + 1, step_y)
                columns = slice(left, left + step_x * (out_w - 1) + 1, step_x)
                pixels = padded[:, rows, columns, inputs]
                sums[..., outputs] += np.einsum("nyxc,oc->nyxo", pixels, weights[outputs, ky, kx])
    return sums


def bmaxpool2d(words: Words, *, kernel: Pair, stride: Pair, padding: Pair = (0, 0)) -> Words:
    """Maximum of {-1, +1} over windows: the AND of the words, since -1 is bit 1. Outside pixels never win.

    uint32 [N, H, W, words] to uint32 [N, OH, OW, words], ``OH = (H + 2 p - kh) // s + 1``. Raises ``ConfigError``,
    among others for a padding that is not smaller than the kernel (a window could then hold no pixel).
    """
    out_h, out_w = check_pool(words, kernel, stride, padding)
    (pad_y, pad_x), (step_y, step_x) = padding, stride
    lowest = np.uint32(0xFFFFFFFF)
    padded = np.pad(words, ((0, 0), (pad_y, pad_y), (pad_x, pad_x), (0, 0)), constant_values=lowest)
    result = np.full((words.shape[0], out_h, out_w, words.shape[3]), lowest, np.uint32)
    for ky in range(kernel[0]):
        for kx in range(kernel[1]):
            rows = slice(ky, ky + step_y * (out_h - 1) + 1, step_y)
            columns = slice(kx, kx + step_x * (out_w - 1) + 1, step_x)
            result &= padded[:, rows, columns]
    return result


def threshold(sums: NDArray[Any], thresholds: NDArray[Any]) -> Words:
    """``-1 where s < t, else +1``, packed: integer ``sums`` [..., O] and ``thresholds`` [O] to uint32 [..., words].

    A threshold at the lowest integer gives always +1; one above every sum gives always -1. Raises ``ConfigError``.
    """
    sums, thresholds = np.asarray(sums), np.asarray(thresholds)
    if sums.dtype.kind != "i" or thresholds.dtype.kind != "i":
        raise ConfigError(f"sums and thresholds are signed integers, got {sums.dtype} and {thresholds.dtype}")
    if sums.ndim == 0 or thresholds.shape != sums.shape[-1:]:
        raise ConfigError(f"one threshold per channel: expected shape {sums.shape[-1:]}, got {thresholds.shape}")
    return pack(np.where(sums < thresholds, -1, 1))
