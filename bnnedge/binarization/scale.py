"""Scaling factors that bring the output of a binary layer closer to that of the float layer.

Rastegari et al. 2016, "XNOR-Net", arXiv:1603.05279: the factor of a filter is the mean magnitude of its weights
(eq. 6), that of an output pixel the mean magnitude of the inputs under the filter (section 3.2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnnedge.binarization.sign import sign
from bnnedge.binarization.surrogate import within


def channel_scale(weight: Tensor) -> Tensor:
    """``alpha_o``, the mean of abs(w_o) over output channel o, as a tensor [O] through which no gradient flows."""
    return weight.detach().flatten(1).abs().mean(1)


def straight_through(weight: Tensor) -> Tensor:
    """``alpha_o sign(w)`` with the gradient ``g 1{abs(w) <= 1}``, which leaves out both alpha and its gradient.

    This is the form of ReActNet's published code.
    """
    return _ScaledSign.apply(weight, False)  # type: ignore[no-any-return, no-untyped-call]


def as_published(weight: Tensor) -> Tensor:
    """``alpha_o sign(w)`` with the gradient ``g (1/n + alpha_o 1{abs(w) <= 1})`` for filters of n weights.

    XNOR-Net, section 3.1, "Training Binary-Weights-Networks".
    """
    return _ScaledSign.apply(weight, True)  # type: ignore[no-any-return, no-untyped-call]


class _ScaledSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, published: bool) -> Tensor:
        alpha = channel_scale(weight).view(-1, *[1] * (weight.dim() - 1))
        ctx.save_for_backward(weight, alpha)
        ctx.published = published
        return sign(weight).mul_(alpha)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        weight, alpha = ctx.saved_tensors
        multiplier = within(weight, 1)
        if ctx.published:
            multiplier.mul_(alpha).add_(1 / weight[0].numel())
        return multiplier.mul_(grads[0]), None
