"""Shapes of the packed convolution and pooling: one check of the arguments, shared by every implementation."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ConfigError
from bnnedge.kernels.layout import WORD_BITS, Words, has_spare_bits_set, words_for

Pair = tuple[int, int]
PadValue = Literal[0, 1]

MAX_FAN_IN = 2**31 - 1
"""Sums are int32 and lie in [-K, K], K being the number of products in one output."""


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Length of one output dimension, ``(size + 2 padding - dilation (kernel - 1) - 1) // stride + 1``; may be < 1."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@dataclass(frozen=True)
class BConv2dGeometry:
    """Checked geometry of one binary convolution; build it with ``check``."""

    batch: int
    height: int
    width: int
    channels: int
    out_channels: int
    kernel: Pair
    stride: Pair
    padding: Pair
    pad_value: PadValue
    dilation: Pair
    groups: int
    out_height: int
    out_width: int

    @property
    def group_channels(self) -> int:
        """Input channels that one filter sees."""
        return self.channels // self.groups

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """[N, OH, OW, O]."""
        return (self.batch, self.out_height, self.out_width, self.out_channels)

    @classmethod
    def check(
        cls,
        words: Words,
        filters: Words,
        channels: int,
        stride: Pair,
        padding: Pair,
        pad_value: int,
        dilation: Pair,
        groups: int,
    ) -> BConv2dGeometry:
        """The geometry of these arguments (those of ``reference.bconv2d``), or ``ConfigError`` with one line."""
        _check_settings(channels, stride, padding, pad_value, dilation, groups)
        _check_words("input words", words, channels, "[N, H, W, ceil(C/32)]")
        _check_words("filter words", filters, channels // groups, "[O, kh, kw, ceil(C/groups/32)]")
        batch, height, width, _ = words.shape
        out_channels, kernel_h, kernel_w, _ = filters.shape
        if out_channels % groups:
            raise ConfigError(f"{out_channels} output channels do not divide into {groups} groups")
        fan_in = kernel_h * kernel_w * (channels // groups)
        if fan_in > MAX_FAN_IN:
            raise ConfigError(f"one output sums {fan_in} products; int32 sums hold at most {MAX_FAN_IN}")
        out_height = output_size(height, kernel_h, stride[0], padding[0], dilation[0])
        out_width = output_size(width, kernel_w, stride[1], padding[1], dilation[1])
        _check_fits((height, width), (kernel_h, kernel_w), padding, dilation, (out_height, out_width))
        return cls(
            batch=batch,
            height=height,
            width=width,
            channels=channels,
            out_channels=out_channels,
            kernel=(kernel_h, kernel_w),
            stride=stride,
            padding=padding,
            pad_value=1 if pad_value else 0,
            dilation=dilation,
            groups=groups,
            out_height=out_height,
            out_width=out_width,
        )


def check_pool(words: Words, kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    """(OH, OW) of a max-pool over packed ``words`` [N, H, W, words], or ``ConfigError``."""
    _check_array("input words", words, "[N, H, W, ceil(C/32)]")
    _check_pair("kernel", kernel, 1)
    _check_pair("stride", stride, 1)
    _check_pair("padding", padding, 0)
    for k, p in zip(kernel, padding, strict=True):
        if p >= k:
            raise ConfigError(
                f"pool padding {padding} leaves windows without a pixel; it must be below kernel {kernel}"
            )
    size = (words.shape[1], words.shape[2])
    out = (
        output_size(size[0], kernel[0], stride[0], padding[0], 1),
        output_size(size[1], kernel[1], stride[1], padding[1], 1),
    )
    _check_fits(size, kernel, padding, (1, 1), out)
    return out


def _check_settings(channels: int, stride: Pair, padding: Pair, pad_value: int, dilation: Pair, groups: int) -> None:
    if channels < 1 or groups < 1 or channels % groups:
        raise ConfigError(f"{channels} channels do not divide into {groups} groups")
    if groups > 1 and (channels // groups) % WORD_BITS:
        raise ConfigError(
            f"groups={groups} of {channels // groups} channels: a group needs a multiple of {WORD_BITS} channels"
        )
    if pad_value not in (0, 1):
        raise ConfigError(f"pad_value is 0 (outside taps add nothing) or 1 (outside is +1), got {pad_value}")
    _check_pair("stride", stride, 1)
    _check_pair("padding", padding, 0)
    _check_pair("dilation", dilation, 1)


def _check_pair(name: str, pair: Pair, least: int) -> None:
    if len(pair) != 2 or not all(isinstance(v, Integral) for v in pair) or min(pair) < least:
        raise ConfigError(f"{name} is two integers (vertical, horizontal) of at least {least}, got {pair}")


def _check_array(name: str, words: NDArray[Any], shape: str) -> None:
    if words.dtype != np.uint32:
        raise ConfigError(f"{name} must be uint32, got {words.dtype}; pack with bnnedge.kernels.layout.pack")
    if words.ndim != 4 or 0 in words.shape:
        raise ConfigError(f"{name} must be {shape}, none of them 0, got shape {words.shape}")


def _check_words(name: str, words: NDArray[Any], channels: int, shape: str) -> None:
    _check_array(name, words, shape)
    if words.shape[3] != words_for(channels):
        raise ConfigError(f"{name} of {channels} channels take {words_for(channels)} words, got shape {words.shape}")
    if has_spare_bits_set(words, channels):
        raise ConfigError(f"{name} have bits set beyond channel {channels}; the bit contract wants spare bits 0")


def _check_fits(size: Pair, kernel: Pair, padding: Pair, dilation: Pair, out: Pair) -> None:
    if min(out) < 1:
        raise ConfigError(
            f"a {kernel[0]}x{kernel[1]} window with dilation {dilation} and padding {padding} does not fit into "
            f"{size[0]}x{size[1]} pixels; enlarge the input or the padding"
        )
