"""THE bit contract: how {-1, +1} values are stored. Every producer and consumer of packed words cites this page.

Version 1 (``BIT_LAYOUT_VERSION``; exported files carry it, the C++ header ``bnnedge/layout.h`` repeats it):

- **Sign.** ``sign(x) = -1`` if ``x < 0``, else ``+1``. So 0.0, -0.0 and NaN are +1.
- **Bit.** Bit 1 means -1, bit 0 means +1.
- **Word.** Channel ``c`` sits in 32-bit word ``c // 32`` at bit ``c % 32``, bit 0 being the least significant. Words
  are stored little-endian. ``C`` channels take ``ceil(C / 32)`` words.
- **Spare bits.** The bits of the last word beyond the last channel are 0.
- **Activations** are NHWC: ``[N, H, W, ceil(C / 32)]``.
- **Filters** are OHWI: ``[O, kh, kw, ceil(C / groups / 32)]``.
- **Groups.** With ``groups > 1`` the channels per group, ``C / groups``, are a multiple of 32. The words of group ``g``
  are then words ``g * C / groups / 32`` and following of the activation, without a gap. Output channel ``o`` belongs
  to group ``o // (O / groups)``.
- **Dot product** of ``K`` packed pairs: ``K - 2 * popcount(a xor w)``. Spare bits cancel, as they are 0 on both sides.
- **Padding.** A word 0 outside the image is +1 in every channel: *one-padding*. *Zero-padding* (what PyTorch does)
  leaves the outside taps out of the sum.

It is the layout of Larq Compute Engine (``LceQuantize``, ``LceBconv2d``), so the same words serve its files.

Test vector: 33 channels ``+1 -1 -1 +1``, 28 times ``+1``, ``-1`` pack to the words ``[6, 1]``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ConfigError

BIT_LAYOUT_VERSION = 1
WORD_BITS = 32

Words = NDArray[np.uint32]


def words_for(channels: int) -> int:
    """Number of 32-bit words that hold ``channels`` bits: ``ceil(channels / 32)``."""
    return -(-channels // WORD_BITS)


def pack(values: NDArray[Any]) -> Words:
    """Signs of ``values`` along the last axis, ``[..., C]`` to ``uint32 [..., ceil(C / 32)]``; spare bits are 0.

    ``values`` is any real array: {-1, +1} or what the sign is taken of. Raises ``ConfigError`` for booleans, complex
    numbers, a scalar or an empty last axis.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "iuf":
        raise ConfigError(f"pack needs real numbers whose sign is taken, got {values.dtype}; pass +1 and -1")
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ConfigError(f"pack needs at least one channel in the last axis, got shape {values.shape}")
    octets = np.packbits(values < 0, axis=-1, bitorder="little")
    spare = 4 * words_for(values.shape[-1]) - octets.shape[-1]
    if spare:
        octets = np.concatenate([octets, np.zeros((*octets.shape[:-1], spare), np.uint8)], axis=-1)
    return np.ascontiguousarray(octets).view("<u4").astype(np.uint32, copy=False)


def unpack(words: NDArray[Any], channels: int) -> NDArray[np.int8]:
    """``uint32 [..., ceil(channels / 32)]`` to ``int8 [..., channels]`` in {-1, +1}; spare bits are not looked at.

    Raises ``ConfigError`` if the words are not 32-bit integers or their number is not that of ``channels``.
    """
    words = np.asarray(words)
    if words.dtype.kind not in "iu" or words.dtype.itemsize != 4:
        raise ConfigError(
            f"unpack needs 32-bit integer words, got {words.dtype}; pack with bnnedge.kernels.layout.pack"
        )
    if words.ndim == 0 or channels < 1 or words.shape[-1] != words_for(channels):
        raise ConfigError(
            f"{channels} channels take {words_for(channels)} words in the last axis, got shape {words.shape}"
        )
    octets = np.ascontiguousarray(words).astype("<u4", copy=False).view(np.uint8)
    bits = np.unpackbits(octets, axis=-1, count=channels, bitorder="little")
    signs = bits.view(np.int8)
    signs *= -2
    signs += 1
    return signs


def pack_filter(weight: NDArray[Any]) -> Words:
    """Binary filters OIHW [O, I/groups, kh, kw] in {-1, +1} to packed OHWI, uint32 [O, kh, kw, ceil(I/groups/32)].

    Raises ``ValueError`` for an array that is not of four axes, or for the first value that is neither -1 nor +1.
    """
    weight = np.asarray(weight)
    if weight.ndim != 4:
        raise ValueError(f"a filter is [O, I/groups, kh, kw], got shape {weight.shape}")
    others = weight[np.abs(weight) != 1]
    if others.size:
        raise ValueError(f"a binary filter holds -1 and +1 alone, got {others[0]}; pack the signs of the weight")
    return pack(np.ascontiguousarray(weight.transpose(0, 2, 3, 1)))


def has_spare_bits_set(words: NDArray[Any], channels: int) -> bool:
    """Whether any bit beyond ``channels`` is 1, which this contract forbids."""
    tail = channels % WORD_BITS
    return tail != 0 and bool(np.any(np.asarray(words)[..., -1] >> np.uint32(tail)))
