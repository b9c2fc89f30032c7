"""Sign with a gradient stand-in: forward is always ``sign(x)``, backward multiplies the gradient by ``m(x)``.

=================  =====================================================  ==============================================
name               multiplier m(x)                                        source
=================  =====================================================  ==============================================
identity           1                                                      Bengio et al. 2013, arXiv:1308.3432
clipped_identity   1 if abs(x) <= 1 else 0                                Hubara et al. 2016, arXiv:1602.02830
approx_sign        max(2 - 2 abs(x), 0)                                   Liu et al. 2018, arXiv:1808.00278
error_decay        max(k (sqrt(2) t - t^2 abs(x)), 0)                     Lin et al. 2020, arXiv:2009.13055
=================  =====================================================  ==============================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bnnedge.binarization.sign import sign
from bnnedge.errors import UnknownNameError

Surrogate = Callable[[Tensor], Tensor]


class _SignWithMultiplier(torch.autograd.Function):
    """``sign(x)`` forward, ``g * multiplier`` backward; a multiplier of 0 or 1 is kept as one byte an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, multiplier: Tensor) -> Tensor:
        ctx.save_for_backward(multiplier)
        return sign(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (multiplier,) = ctx.saved_tensors
        return grads[0] * multiplier, None


class _SignIdentity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sign(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def identity(x: Tensor) -> Tensor:
    """``sign(x)`` whose gradient is passed on unchanged."""
    return _SignIdentity.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def clipped_identity(x: Tensor) -> Tensor:
    """``sign(x)`` whose gradient passes where ``abs(x) <= 1``, bounds included."""
    return _SignWithMultiplier.apply(x, x.detach().abs() <= 1)  # type: ignore[no-any-return, no-untyped-call]


def approx_sign(x: Tensor) -> Tensor:
    """``sign(x)`` with the derivative of Bi-Real Net's piecewise quadratic, ``max(2 - 2 abs(x), 0)``."""
    multiplier = (2 - 2 * x.detach().abs()).clamp_min(0)
    return _SignWithMultiplier.apply(x, multiplier)  # type: ignore[no-any-return, no-untyped-call]


def error_decay(x: Tensor, t: float, k: float) -> Tensor:
    """``sign(x)`` with RBNN's training-aware derivative ``max(k (sqrt(2) t - t^2 abs(x)), 0)``.

    The support is ``abs(x) < sqrt(2) / t``, the peak ``k sqrt(2) t`` at 0.
    """
    multiplier = (k * (math.sqrt(2) * t - t**2 * x.detach().abs())).clamp_min(0)
    return _SignWithMultiplier.apply(x, multiplier)  # type: ignore[no-any-return, no-untyped-call]


SURROGATES: dict[str, Surrogate] = {
    "identity": identity,
    "clipped_identity": clipped_identity,
    "approx_sign": approx_sign,
}


def get_surrogate(name: str) -> Surrogate:
    """The parameter-free surrogate called ``name``."""
    if name not in SURROGATES:
        raise UnknownNameError(f"unknown surrogate {name!r}; known: {', '.join(SURROGATES)}")
    return SURROGATES[name]
