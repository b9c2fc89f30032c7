"""What a binary layer keeps between forward and backward: a sign bit and a mask bit of each element of its input.

That is 0.25 byte an element, where plain PyTorch keeps the signs in float and the input or a mask beside them. A binary
weight is kept the same way, a sign bit for each element and the magnitude of each output channel. The bits lie

- on a GPU as the kernels want them, int32 [N, H, W, ceil(C / 32)] or [N, ceil(C / 32)] (``kernels/gpu/reference.py``);
- on a CPU in the order of the tensor's memory (``kernels/flat_bits.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bnnedge.kernels import flat_bits
from bnnedge.kernels.layout import words_for


class Bits(NamedTuple):
    """The bits of one tensor.

    Those of an input have an empty ``scale``, and an empty ``mask`` if nothing is clipped; those of a weight have an
    empty ``mask``. ``counts``, the popcount of each pixel, is empty on a CPU.
    """

    signs: Tensor
    mask: Tensor
    counts: Tensor
    scale: Tensor


def on_gpu(device: torch.device, kernels: str) -> bool:
    """Whether the bits are laid out for GPU kernels, which Triton's interpreter runs on CPU tensors."""
    return device.type == "cuda" or kernels == "triton"


def takes(x: Tensor) -> bool:
    """Whether the bits of ``x`` can be packed: a CPU's or NVIDIA GPU's tensor of a shape and type as below."""
    fits = x.dim() in (2, 4) and x.numel() > 0 and x.dtype.is_floating_point
    return fits and (x.device.type == "cpu" or (x.device.type == "cuda" and x.dtype != torch.float64))


def pack_input(x: Tensor, clip: float, gpu: bool) -> Bits:
    """The bits of ``x`` [N, C, H, W] or [N, C]; the mask is ``abs(x) <= clip``, empty for an infinite clip."""
    none = x.new_empty(0, dtype=torch.int32)
    if gpu:
        from bnnedge.kernels.gpu.pack import sign_pack

        signs, mask, counts = sign_pack(channels_last(x).contiguous(), clip)
        return Bits(signs, none if mask is None else mask, counts, x.new_empty(0))
    mask = none if math.isinf(clip) else flat_bits.pack_mask(x, clip)
    return Bits(flat_bits.pack_signs(x), mask, none, x.new_empty(0))


def pack_weight(weight: Tensor, gpu: bool) -> Bits:
    """The bits of ``weight`` [O, ...], whose values have one magnitude in each output channel: ``scale`` [O]."""
    bits = pack_input(weight if gpu else weight.contiguous(), math.inf, gpu)  # packed in the order of its shape
    scale = weight.flatten(1)[:, 0].abs()
    return bits._replace(scale=scale.float() if gpu else scale)


def given(signs: Tensor, counts: Tensor | None = None) -> Bits:
    """Bits that are at hand, without a mask; the counts of a GPU tensor may be made later by ``count``."""
    none = signs.new_empty(0)
    return Bits(signs, none, none if counts is None else counts, none)


def count(signs: Tensor) -> Tensor:
    """The counts that belong to the signs of a GPU tensor."""
    from bnnedge.kernels.gpu.pack import count_bits

    return count_bits(signs)


def empty_bits(x: Tensor, clip: float, gpu: bool, is_weight: bool = False) -> Bits:
    """Uninitialised tensors of the shapes that ``pack_input`` and ``pack_weight`` return."""
    pixels = channels_last(x).shape[:-1]
    shape = (*pixels, words_for(x.shape[1])) if gpu else (words_for(x.numel()),)
    return Bits(
        x.new_empty(shape, dtype=torch.int32),
        x.new_empty(0 if math.isinf(clip) else shape, dtype=torch.int32),
        x.new_empty(pixels if gpu else 0, dtype=torch.int32),
        x.new_empty(x.shape[0] if is_weight else 0, dtype=torch.float32 if is_weight and gpu else x.dtype),
    )


def unpack_input(signs: Tensor, shape: Sequence[int], was_channels_last: bool, dtype: torch.dtype, gpu: bool) -> Tensor:
    """A tensor of -1 and +1 of ``shape``, on a GPU in ``channels_last``, else as ``was_channels_last`` says."""
    if gpu:
        from bnnedge.kernels.gpu.unpack import unpack_signs

        return channels_first(unpack_signs(signs, shape[1], dtype))
    return flat_bits.unpack_signs(signs, shape, was_channels_last, dtype)


def unpack_weight(signs: Tensor, scale: Tensor, shape: Sequence[int], dtype: torch.dtype, gpu: bool) -> Tensor:
    """The weight that was packed; ``scale`` is one magnitude for each output channel."""
    if gpu:
        from bnnedge.kernels.gpu.unpack import unpack_signs

        return channels_first(unpack_signs(signs, shape[1], dtype, scale))
    values = flat_bits.unpack_signs(signs, shape, False, scale.dtype)
    return values.mul_(scale.view(-1, *[1] * (len(shape) - 1))).to(dtype)


def mask_gradient(g: Tensor, mask: Tensor, was_channels_last: bool, gpu: bool) -> Tensor:
    """``g`` [N, C, H, W] or [N, C] where the mask is 1, else 0; ``g`` itself if the mask is empty."""
    if mask.numel() == 0:
        return g
    if gpu:
        from bnnedge.kernels.gpu import unpack

        return channels_first(unpack.mask_gradient(channels_last(g).contiguous(), mask))
    return g * flat_bits.unpack_mask(mask, g.shape, was_channels_last)


def channels_last(x: Tensor) -> Tensor:
    """A view [N, H, W, C] of [N, C, H, W]; [N, C] is itself."""
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


def channels_first(x: Tensor) -> Tensor:
    """The inverse of ``channels_last``, for a tensor without a gradient."""
    # Autograd forbids to change an operator's result in place if it is a view; .data is none.
    return x.permute(0, 3, 1, 2).data if x.dim() == 4 else x
