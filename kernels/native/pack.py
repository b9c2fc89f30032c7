"""Packing signs into bits and back in C++; the bits are those of ``kernels/layout.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ConfigError
from bnnedge.kernels.layout import Words, words_for
from bnnedge.kernels.native.arrays import contiguous, output_buffer
from bnnedge.kernels.native.library import checked, encoded, load_library

_NHWC_FLOAT, _NHWC_INT8, _NCHW_FLOAT = 0, 1, 2
"""``bnnedge_source``: what the values are."""


def pack_nhwc(
    values: NDArray[Any], *, zero_point: int = 0, kernel: str | None = None, out: Words | None = None
) -> Words:
    """``layout.pack`` of float32 or int8 [..., C] to uint32 [..., ceil(C/32)].

    The bit of an int8 value is that of ``value < zero_point``; ``zero_point`` does not move float values. ``out`` takes
    the words if it is given. Raises ``ConfigError``, and ``MissingDependencyError`` without the library.
    """
    values = np.ascontiguousarray(values)
    if values.dtype not in (np.float32, np.int8) or values.ndim == 0 or values.size == 0:
        raise ConfigError(f"pack_nhwc takes float32 or int8 [..., C], got {values.dtype} {values.shape}")
    channels = values.shape[-1]
    words = output_buffer(out, (*values.shape[:-1], words_for(channels)), np.uint32)
    source = _NHWC_INT8 if values.dtype == np.int8 else _NHWC_FLOAT
    _pack(source, kernel, values, zero_point, 1, values.size // channels, channels, words)
    return words


def pack_nchw(values: NDArray[np.float32], *, kernel: str | None = None) -> Words:
    """Signs of float32 [N, C, H, W] to uint32 [N, H, W, ceil(C/32)].

    Raises ``ConfigError``, and ``MissingDependencyError`` without the library.
    """
    values = np.ascontiguousarray(values)
    if values.dtype != np.float32 or values.ndim != 4 or values.size == 0:
        raise ConfigError(f"pack_nchw takes float32 [N, C, H, W], got {values.dtype} {values.shape}")
    batch, channels, height, width = values.shape
    words = np.empty((batch, height, width, words_for(channels)), np.uint32)
    _pack(_NCHW_FLOAT, kernel, values, 0, batch, height * width, channels, words)
    return words


def unpack_nhwc(
    words: Words, channels: int, *, kernel: str | None = None, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """``layout.unpack`` of uint32 [..., ceil(channels/32)] to float32 [..., channels].

    ``out`` takes the values if it is given. Raises ``ConfigError``, and ``MissingDependencyError`` without the library.
    """
    words = contiguous("words", words, np.uint32)
    if words.ndim == 0 or channels < 1 or words.shape[-1] != words_for(channels):
        raise ConfigError(f"{channels} channels do not take words of shape {words.shape}")
    values = output_buffer(out, (*words.shape[:-1], channels), np.float32)
    checked(
        load_library().bnnedge_unpack,
        encoded(kernel),
        words.ctypes.data,
        words.size,
        values.size // channels,
        channels,
        values.ctypes.data,
        values.size,
    )
    return values


def _pack(
    source: int,
    kernel: str | None,
    values: NDArray[Any],
    zero_point: int,
    batch: int,
    pixels: int,
    channels: int,
    words: Words,
) -> None:
    checked(
        load_library().bnnedge_pack,
        source,
        encoded(kernel),
        values.ctypes.data,
        values.size,
        zero_point,
        batch,
        pixels,
        channels,
        words.ctypes.data,
        words.size,
    )
