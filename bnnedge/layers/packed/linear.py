"""The binary dense layer as an operator, and its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bnnedge.kernels.gpu.select import packed_pays, select
from bnnedge.layers import stash
from bnnedge.layers.packed.formats import Gradient, Outputs, empty_bits, keep, kept, pack_weight
from bnnedge.layers.packed.operators import operator, shapes_of


@dataclass(frozen=True)
class LinearArguments:
    """Arguments of ``packed_linear``: ``x`` [N, I], ``weight`` [O, I], the rest as in ``Conv2dArguments``."""

    x: Tensor
    weight: Tensor
    clip: float
    binary_weight: bool
    out_dtype: torch.dtype
    kernels: str


@operator("bnnedge::packed_linear")
def packed_linear(a: LinearArguments) -> Outputs:
    """``linear(sign(x), weight)`` of ``out_dtype``, and what the backward pass reads."""
    xnor_gemm = select("xnor_gemm", a.x.device, a.x.shape[1], kernels=a.kernels)
    gpu = stash.on_gpu(a.x.device, a.kernels)
    bits, filters = stash.pack_input(a.x, a.clip, gpu), pack_weight(a.weight, a.binary_weight, gpu)

    def packed() -> Tensor:
        assert xnor_gemm is not None
        operands = (bits.signs, filters.signs, a.x.shape[1], bits.counts, filters.counts)
        y: Tensor = xnor_gemm(*operands, filters.scale, a.out_dtype)
        return y

    def dense() -> Tensor:
        signs = stash.unpack_input(bits.signs, a.x.shape, False, a.out_dtype, gpu)
        return F.linear(signs, a.weight.to(a.out_dtype))

    layer = (*a.x.shape, *a.weight.shape, a.out_dtype, a.x.device)
    packs = a.binary_weight and xnor_gemm is not None
    y = packed() if packs and (a.kernels == "triton" or packed_pays(layer, packed, dense)) else dense()
    return y, bits.signs, bits.mask, filters.signs, filters.scale


@shapes_of(packed_linear)
def _(a: LinearArguments) -> Outputs:
    y = a.x.new_empty((a.x.shape[0], a.weight.shape[0]), dtype=a.out_dtype)
    return y, *empty_bits(a.x, a.weight, a.clip, a.binary_weight, stash.on_gpu(a.x.device, a.kernels))


@dataclass(frozen=True)
class LinearGradient(Gradient):
    """Arguments of ``packed_linear_backward``."""

    needs_x: bool
    needs_weight: bool
    kernels: str


@operator("bnnedge::packed_linear_backward")
def packed_linear_backward(a: LinearGradient) -> tuple[Tensor, Tensor]:
    """(dx, dw) of ``packed_linear``, empty where not needed."""
    gpu = stash.on_gpu(a.g.device, a.kernels)
    dx, dw = a.g.new_empty(0), a.g.new_empty(0)
    if a.needs_x:
        weight = a.dense_weight(gpu).to(a.g.dtype)
        dx = stash.mask_gradient(a.g @ weight, a.mask, a.x_channels_last, gpu).to(a.x_dtype)
    if a.needs_weight:
        dw = (a.g.t() @ a.unpacked_input(gpu)).to(a.weight_dtype)
    return dx, dw


@shapes_of(packed_linear_backward)
def _(a: LinearGradient) -> tuple[Tensor, Tensor]:
    return a.empty(a.needs_x, a.needs_weight)


def _context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    a = LinearArguments(*inputs)
    ctx.kernels = a.kernels
    keep(ctx, a.x, a.weight, a.binary_weight, output)


def _backward(ctx, g, *_):  # type: ignore[no-untyped-def]
    needs_x, needs_weight, *_ = ctx.needs_input_grad
    dx, dw = packed_linear_backward(g, *kept(ctx), needs_x, needs_weight, ctx.kernels)
    return dx if needs_x else None, dw if needs_weight else None, *[None] * 4


packed_linear.register_autograd(_backward, setup_context=_context)
