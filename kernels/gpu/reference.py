"""The slow, obvious version of every GPU op, in torch on any device; integers in int64, so every result is exact.

The launchers of this folder have these signatures and results. Shapes, with ``Cw = ceil(C / 32)`` words:

- ``signs`` int32 [..., Cw]: bit 1 where x < 0 (-0.0 and NaN are +1), channel c at bit c % 32 of word c // 32, spare
  bits 0: the contract of ``kernels/layout.py`` in torch's signed words;
- ``mask``  int32 [..., Cw]: bit 1 where ``abs(x) <= clip`` (NaN is outside), spare bits 0; None for an infinite clip;
- ``counts`` int32 [...]: bits of ``signs`` that are 1, per pixel or row;
- activations are [N, H, W, Cw] or [M, Cw], filters [O, kh, kw, Cw] or [O, Cw].

With ``P = popcount(a & b)``, Ra and Rb the counts of both sides and K the number of products,
``dot = 4 P - 2 Ra - 2 Rb + K``. Under zero padding P and Ra see the valid taps only, so Rb and K must too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bnnedge.kernels.geometry import BConv2dGeometry
from bnnedge.kernels.layout import WORD_BITS, words_for


class Packed(NamedTuple):
    """The bits of one tensor; see the module's text."""

    signs: Tensor
    mask: Tensor | None
    counts: Tensor


class Convolved(NamedTuple):
    """Output [N, OH, OW, O] and, where asked for, int64 [2, O] sums over all pixels of the integers v and of v * v."""

    y: Tensor
    sums: Tensor | None


def pack_bits(bits: Tensor) -> Tensor:
    """Booleans [..., C] to int32 words [..., Cw]."""
    channels = bits.shape[-1]
    padded = F.pad(bits.to(torch.int64), (0, words_for(channels) * WORD_BITS - channels))
    weights = torch.ones((), dtype=torch.int64, device=bits.device) << torch.arange(WORD_BITS, device=bits.device)
    words: Tensor = (padded.unflatten(-1, (-1, WORD_BITS)) * weights).sum(-1)
    return words.to(torch.int32)  # 2^31 wraps to the sign bit


def unpack_bits(words: Tensor, channels: int) -> Tensor:
    """Int32 words [..., Cw] to booleans [..., channels]."""
    bits = (words.unsqueeze(-1) >> torch.arange(WORD_BITS, dtype=torch.int32, device=words.device)) & 1
    return bits.flatten(-2)[..., :channels].bool()


def sign_pack(x: Tensor, clip: float = 1.0) -> Packed:
    """Signs, clip mask and counts of ``x`` [..., C]."""
    negative = x < 0
    mask = None if math.isinf(clip) else pack_bits(x.abs() <= clip)
    return Packed(pack_bits(negative), mask, negative.sum(-1).to(torch.int32))


def count_bits(words: Tensor) -> Tensor:
    """The counts of ``words`` [..., Cw] whose spare bits are 0: int32 [...]."""
    return unpack_bits(words, words.shape[-1] * WORD_BITS).sum(-1).to(torch.int32)


def batch_statistics(y: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and ``1 / sqrt(variance + eps)`` of each channel of ``y`` [..., C], float32 [C]; variance over all n, not
    n - 1, elements."""
    wide = y.double().flatten(0, -2)
    var, mean = torch.var_mean(wide, 0, correction=0)
    return mean.float(), (var + eps).rsqrt().float()


def bn_clip_pack(
    y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None
) -> tuple[Tensor, Packed]:
    """``z = clip(x, -1, 1)`` of ``x = (y - mean) * invstd * weight + bias + residual``, and z's bits.

    x is float32, rounded once to the wider type of ``y`` and ``residual``, both [..., C]; the others are float32 [C].
    The mask is ``abs(x) < 1`` of the rounded x, where z's gradient is x's (NaN is outside).
    """
    x = (y.float() - mean) * (invstd * weight) + bias
    x = (x if residual is None else x + residual.float()).to(output_type(y, residual))
    signs, _, counts = sign_pack(x)
    return x.clamp(-1, 1), Packed(signs, pack_bits(x.abs() < 1), counts)


def output_type(y: Tensor, residual: Tensor | None) -> torch.dtype:
    """The type of ``y + residual``."""
    return y.dtype if residual is None else torch.promote_types(y.dtype, residual.dtype)


def bn_clip_gradient(
    g: Tensor, mask: Tensor, y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``bn_clip_pack`` in y, residual, weight and bias, from z's gradient ``g`` [..., C] and the mask, for
    the mean and invstd of this very y.

    With ``p = g`` where the mask is 1, else 0, ``u = (y - mean) * invstd`` and n elements in a channel:
    ``dy = weight * invstd * (p - sum(p) / n - u * sum(p * u) / n)``, ``p``, ``sum(p * u)``, ``sum(p)``.
    """
    p = mask_gradient(g, mask)
    wide, u = p.double().flatten(0, -2), ((y.double() - mean) * invstd).flatten(0, -2)
    along, total, count = (wide * u).sum(0), wide.sum(0), len(wide)
    dy = (wide - total / count - u * (along / count)) * (weight.double() * invstd)
    return dy.view(y.shape).to(y.dtype), p, along.float(), total.float()


def unpack_signs(words: Tensor, channels: int, dtype: torch.dtype, scale: Tensor | None = None) -> Tensor:
    """+1 and -1 of ``dtype`` [..., channels]; with ``scale`` float32 [rows], times it for each index of the first
    dimension (the output channel of a filter)."""
    signs = torch.where(unpack_bits(words, channels), -1, 1)
    if scale is None:
        return signs.to(dtype)
    return (signs * scale.view(-1, *[1] * (signs.dim() - 1))).to(dtype)


def mask_gradient(g: Tensor, mask: Tensor) -> Tensor:
    """``g`` [..., C] where the mask is 1, else 0."""
    return torch.where(unpack_bits(mask, g.shape[-1]), g, torch.zeros((), dtype=g.dtype, device=g.device))


def scaled(v: Tensor, alpha: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """Integers [..., O] as they leave a kernel: int32, or times ``alpha`` (float32 [O], None: 1) in float32, rounded
    once."""
    if out_dtype == torch.int32:
        return v.to(torch.int32)
    return (v.float() if alpha is None else v.float() * alpha).to(out_dtype)


def xnor_gemm(
    a: Tensor,
    b: Tensor,
    k: int,
    a_counts: Tensor,
    b_counts: Tensor,
    alpha: Tensor | None = None,
    out_dtype: torch.dtype = torch.int32,
) -> Tensor:
    """``v[m, n] = sum over k of a[m, k] * b[n, k]`` of +-1 values, then ``scaled``: [M, Kw] and [N, Kw] to [M, N].

    ``out_dtype`` is int32 (``alpha`` then None), float32, bfloat16 or float16. The counts are for kernels that need
    them.
    """
    signs = [torch.where(unpack_bits(words, k), -1, 1) for words in (a, b)]
    return scaled((signs[0].unsqueeze(1) * signs[1]).sum(-1), alpha, out_dtype)


def bconv2d(
    words: Tensor,
    filters: Tensor,
    geometry: BConv2dGeometry,
    counts: Tensor,
    filter_counts: Tensor,
    alpha: Tensor | None = None,
    out_dtype: torch.dtype = torch.int32,
    bn_sums: bool = False,
) -> Convolved:
    """Binary convolution with ``kernels.reference.bconv2d``'s integers v, then ``scaled``; one group.

    ``words`` [N, H, W, Cw], ``filters`` [O, kh, kw, Cw], ``counts`` [N, H, W], ``filter_counts`` [O, kh, kw].
    """
    g = geometry
    signs = torch.where(unpack_bits(words, g.channels), -1, 1)
    weights = torch.where(unpack_bits(filters, g.channels), -1, 1)
    padded = F.pad(signs, (0, 0, g.padding[1], g.padding[1], g.padding[0], g.padding[0]), value=g.pad_value)
    v = torch.zeros(g.output_shape, dtype=torch.int64, device=words.device)
    for ky in range(g.kernel[0]):
        for kx in range(g.kernel[1]):
            top, left = ky * g.dilation[0], kx * g.dilation[1]
            rows = padded[:, top : top + g.stride[0] * (g.out_height - 1) + 1 : g.stride[0]]
            pixels = rows[:, :, left : left + g.stride[1] * (g.out_width - 1) + 1 : g.stride[1]]
            v += (pixels.unsqueeze(-2) * weights[:, ky, kx]).sum(-1)
    sums = torch.stack([v.sum((0, 1, 2)), (v * v).sum((0, 1, 2))]) if bn_sums else None
    return Convolved(scaled(v, alpha, out_dtype), sums)
