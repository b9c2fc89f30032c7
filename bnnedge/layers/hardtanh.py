"""Hardtanh that keeps a bit of each element for its gradient, where ``nn.Hardtanh`` keeps its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnedge.kernels import flat_bits
from bnnedge.kernels.flat_bits import is_channels_last
from bnnedge.kernels.gpu.select import Kernels
from bnnedge.layers import stash
from bnnedge.layers.packed.formats import in_format
from bnnedge.layers.packed.operators import on_device_of_first


class Hardtanh(nn.Hardtanh):
    """``min(max(x, -1), 1)``, gradient ``g 1{abs(x) < 1}``: those of ``nn.Hardtanh``, but for NaN, whose gradient is 0.

    [N, C, H, W] and [N, C] keep 1 bit an element, other shapes their input. On a CPU an infinite g outside gives NaN.
    """

    kernels: Kernels = "auto"
    """See ``binary_layers.use_kernels``."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        keeps = self.training and torch.is_grad_enabled()  # Exporters trace in eval mode.
        if self.kernels == "torch" or not keeps or not stash.takes(x):
            return F.hardtanh(x)
        y: Tensor = hardtanh_op(x, self.kernels)[0]
        return y


@torch.library.custom_op("bnnedge::hardtanh", mutates_args=())
@on_device_of_first
def hardtanh_op(x: Tensor, kernels: str) -> tuple[Tensor, Tensor]:
    """``hardtanh(x)`` of [N, C, H, W] or [N, C], and the mask of ``abs(x) < 1``, laid out as in ``stash.Bits``."""
    gpu = stash.on_gpu(x.device, kernels)
    below_1 = 1 - torch.finfo(x.dtype).eps / 2  # abs(x) < 1 where it is at most this
    mask = stash.pack_input(x, below_1, gpu).mask if gpu else flat_bits.pack_mask(x, below_1)
    return in_format(F.hardtanh(x), gpu or is_channels_last(x)), mask


@hardtanh_op.register_fake
def _(x: Tensor, kernels: str) -> tuple[Tensor, Tensor]:
    gpu = stash.on_gpu(x.device, kernels)
    return in_format(x.new_empty(x.shape), gpu or is_channels_last(x)), stash.empty_bits(x, 1.0, gpu).mask


@torch.library.custom_op("bnnedge::hardtanh_backward", mutates_args=())
@on_device_of_first
def hardtanh_backward_op(g: Tensor, mask: Tensor, channels_last: bool, kernels: str) -> Tensor:
    """``g`` where the mask is 1, else 0."""
    gpu = stash.on_gpu(g.device, kernels)
    return in_format(stash.mask_gradient(g, mask, channels_last, gpu), gpu or channels_last)


@hardtanh_backward_op.register_fake
def _(g: Tensor, mask: Tensor, channels_last: bool, kernels: str) -> Tensor:
    return in_format(g.new_empty(g.shape), stash.on_gpu(g.device, kernels) or channels_last)


def _context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, ctx.kernels = inputs
    ctx.channels_last = is_channels_last(x)
    ctx.save_for_backward(output[1])


def _backward(ctx, g, *_):  # type: ignore[no-untyped-def]
    return hardtanh_backward_op(g, ctx.saved_tensors[0], ctx.channels_last, ctx.kernels), None


hardtanh_op.register_autograd(_backward, setup_context=_context)
