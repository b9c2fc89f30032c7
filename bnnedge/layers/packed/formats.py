"""What the packed operators return and keep: tensors laid out in memory, and the bits of inputs and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnnedge.kernels.flat_bits import is_channels_last
from bnnedge.layers import stash

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""y; signs and mask of the input; signs and scale of a binary weight, empty for another."""


def in_format(y: Tensor, channels_last: bool) -> Tensor:
    """``y`` [N, C, H, W] laid out in ``channels_last`` or as its shape says; [N, C] as it is."""
    channels_last = channels_last and y.dim() == 4
    return y.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def pack_weight(weight: Tensor, binary: bool, gpu: bool) -> stash.Bits:
    """The bits of a binary weight; empty ones of another, which is kept as it is."""
    if binary:
        return stash.pack_weight(weight, gpu)
    none = weight.new_empty(0, dtype=torch.int32)
    return stash.Bits(none, none, none, weight.new_empty(0))


def empty_bits(
    x: Tensor, weight: Tensor, clip: float, binary_weight: bool, gpu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Uninitialised tensors of the shapes of ``Outputs`` but for y."""
    bits = stash.empty_bits(x, clip, gpu)
    if not binary_weight:
        return bits.signs, bits.mask, weight.new_empty(0, dtype=torch.int32), weight.new_empty(0)
    filters = stash.empty_bits(weight, float("inf"), gpu, is_weight=True)
    return bits.signs, bits.mask, filters.signs, filters.scale


@dataclass(frozen=True)
class Gradient:
    """First arguments of the backward operators: the output's gradient ``g``, and what the forward pass kept.

    ``weight`` is None if ``filters`` and ``scale`` hold it as bits.
    """

    g: Tensor
    signs: Tensor
    mask: Tensor
    filters: Tensor
    scale: Tensor
    weight: Tensor | None
    x_shape: list[int]
    x_channels_last: bool
    x_dtype: torch.dtype
    weight_shape: list[int]
    weight_dtype: torch.dtype

    def unpacked_input(self, gpu: bool) -> Tensor:
        """sign(x) of the type of ``g``."""
        return stash.unpack_input(self.signs, self.x_shape, self.x_channels_last, self.g.dtype, gpu)

    def dense_weight(self, gpu: bool) -> Tensor:
        """The weight; one that was packed has the type of ``g``."""
        if self.weight is not None:
            return self.weight
        return stash.unpack_weight(self.filters, self.scale, self.weight_shape, self.g.dtype, gpu)

    def empty(self, needs_x: bool, needs_weight: bool) -> tuple[Tensor, Tensor]:
        """Uninitialised (dx, dw) in the order of their shapes, of no elements where they are not needed."""
        return (
            self.g.new_empty(self.x_shape, dtype=self.x_dtype) if needs_x else self.g.new_empty(0),
            self.g.new_empty(self.weight_shape, dtype=self.weight_dtype) if needs_weight else self.g.new_empty(0),
        )


def keep(  # type: ignore[no-untyped-def]
    ctx, x: Tensor, weight: Tensor, binary_weight: bool, output: Sequence[Tensor], given_signs: Tensor | None = None
) -> None:
    """Saves in ``ctx`` what ``kept`` reads; ``given_signs`` are those of the input where ``output`` has none."""
    _, signs, mask, filters, scale, *_ = output
    signs = signs if given_signs is None else given_signs
    ctx.mark_non_differentiable(scale)
    ctx.save_for_backward(signs, mask, filters, scale, None if binary_weight else weight)
    ctx.described = (list(x.shape), is_channels_last(x), x.dtype, list(weight.shape), weight.dtype)


def kept(ctx) -> tuple[Any, ...]:  # type: ignore[no-untyped-def]
    """The arguments of ``Gradient`` behind ``g``, as ``keep`` saved them."""
    return (*ctx.saved_tensors, *ctx.described)
