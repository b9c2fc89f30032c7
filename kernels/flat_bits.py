"""Bits of a CPU tensor in the order of its memory: what a training step keeps between forward and backward.

Element k is bit k % 32 of int32 word k // 32, bit 1 where x < 0; spare bits are 0: ``kernels/layout.py`` with the whole
tensor as one row. A tensor that is dense in ``channels_last`` is taken in that order, and unpacking gives back its
strides. The C++ kernels do the work for float32 where they were built, NumPy otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bnnedge.kernels import native
from bnnedge.kernels.layout import words_for


def pack_signs(x: Tensor) -> Tensor:
    """The bits of x < 0, int32 [ceil(numel / 32)]."""
    flat = in_memory_order(x)
    if x.dtype != torch.float32 or not native.available():
        return _pack_bits(flat < 0)
    words = torch.empty(words_for(flat.numel()), dtype=torch.int32)
    native.pack_nhwc(flat.numpy(), out=words.numpy().view(np.uint32))
    return words


def pack_mask(x: Tensor, clip: float) -> Tensor:
    """The bits of ``abs(x) <= clip``, int32 [ceil(numel / 32)]."""
    return _pack_bits(in_memory_order(x).abs() <= clip)


def unpack_signs(words: Tensor, shape: Sequence[int], channels_last: bool, dtype: torch.dtype) -> Tensor:
    """A tensor of -1 and +1 of ``shape``, with the strides of ``channels_last`` if that was the order of packing."""
    if dtype == torch.float32 and native.available():
        flat = torch.empty(math.prod(shape), dtype=dtype)
        native.unpack_nhwc(words.numpy().view(np.uint32), len(flat), out=flat.numpy())
    else:
        flat = 1 - 2 * _unpack_bits(words, math.prod(shape)).to(dtype)
    return _shaped(flat, shape, channels_last)


def unpack_mask(words: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    """A tensor of booleans of ``shape``, with the strides of ``channels_last`` if that was the order of packing."""
    return _shaped(_unpack_bits(words, math.prod(shape)), shape, channels_last)


def is_channels_last(x: Tensor) -> bool:
    """Whether ``x`` [N, C, H, W] lies in memory as [N, H, W, C], and not as [N, C, H, W] too."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def in_memory_order(x: Tensor) -> Tensor:
    """The elements in one dimension, copied only where ``x`` is dense in neither order."""
    return (x.permute(0, 2, 3, 1) if is_channels_last(x) else x.contiguous()).reshape(-1)


def _pack_bits(bits: Tensor) -> Tensor:
    words = torch.zeros(words_for(bits.numel()), dtype=torch.int32)
    octets = np.packbits(bits.view(torch.uint8).numpy(), bitorder="little")
    words.numpy().view(np.uint8)[: len(octets)] = octets
    return words


def _unpack_bits(words: Tensor, count: int) -> Tensor:
    octets = words.numpy().view(np.uint8)
    return torch.from_numpy(np.unpackbits(octets, count=count, bitorder="little")).view(torch.bool)


def _shaped(flat: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    if not channels_last:
        return flat.view(*shape)
    batch, channels, height, width = shape
    return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
