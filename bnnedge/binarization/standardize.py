"""Standardization over each row of a tensor, and the sign of what is standardized, with their gradients.

A row is an entry of dimension 0: a filter of a weight, or a sample of an activation.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bnnedge.binarization.row_blocks import row_blocks
from bnnedge.binarization.sign import sign_around
from bnnedge.binarization.surrogate import error_decay_multiplier


def standardize(x: Tensor) -> Tensor:
    """``(x - mean) / std`` of each row of dimension 0, with the unbiased standard deviation over the row's elements.

    A row whose std is within the rounding error of its mean counts as constant. It becomes 0 and has no gradient, where
    the plain quotient would be NaN or noise.
    """
    return _Standardize.apply(x, None)  # type: ignore[no-any-return, no-untyped-call]


def standardized_sign(x: Tensor, t: float) -> Tensor:
    """``sign(x - mean)``, which is the sign of ``standardize(x)``.

    The gradient of that sign is multiplied by ``error_decay_multiplier`` with k = 1.
    """
    return _Standardize.apply(x, t)  # type: ignore[no-any-return, no-untyped-call]


class _Standardize(torch.autograd.Function):
    """``z = (x - mean) / std``, or its sign if ``t`` is given.

    It keeps only ``x`` and its means for the backward pass, which computes z again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, t: float | None) -> Tensor:
        mean = row_mean(x)
        ctx.save_for_backward(x, mean)
        ctx.t = t
        if t is not None:
            return sign_around(x, mean)
        centered, inverse = centered_rows(x, mean)
        return centered.mul_(inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        found = torch.empty_like(x)
        for rows in row_blocks(x):
            centered, inverse = centered_rows(x[rows], mean[rows])
            g = grads[0][rows].to(centered.dtype)
            if ctx.t is not None:
                g = error_decay_multiplier(centered, ctx.t, 1.0, inverse).mul_(g)
            found[rows] = through_standardization(g, centered, inverse, inverse)
        return found, None


def row_mean(x: Tensor) -> Tensor:
    """The mean of each row of dimension 0, [N, 1, ...], computed as in the deploy form and at least in float32."""
    return x.mean(tuple(range(1, x.dim())), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))


def centered_rows(x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """``x - mean`` in a new tensor, and ``1 / std`` of each row, which is 0 for a constant one.

    ``torch.std_mean`` would take ten times as long on a CPU.
    """
    centered = x - mean
    norm = torch.linalg.vector_norm(centered, dim=tuple(range(1, x.dim())), keepdim=True)
    std = norm / math.sqrt(x[0].numel() - 1)
    rounding = 16 * torch.finfo(std.dtype).eps * mean.abs()
    return centered, torch.where(std <= rounding, 0, 1 / std)


def through_standardization(g: Tensor, centered: Tensor, inverse: Tensor, factor: Tensor) -> Tensor:
    """``factor (g - mean(g) - z sum(g z) / (n - 1))`` for rows of n elements, with ``z = centered * inverse``.

    ``inverse`` is 1 / std. If ``factor`` is ``inverse`` too, the result is ``dL/dx`` for ``g = dL/dz``.
    """
    along = column(row_dots(g, centered), g) * inverse**2 / (g[0].numel() - 1)
    # There is no out= here, since torch.compile would split its graph there if the format is channels_last.
    return torch.addcmul(g, centered, -along).sub_(row_mean(g)).mul_(factor)


def column(values: Tensor, like: Tensor) -> Tensor:
    """``values`` [O] in a shape that multiplies the rows of ``like``."""
    return values.view(-1, *[1] * (like.dim() - 1))


def row_dots(x: Tensor, y: Tensor) -> Tensor:
    """The scalar product of each row of ``x`` with that of ``y``, shape [O]."""
    return (x * y).flatten(1).sum(1)
