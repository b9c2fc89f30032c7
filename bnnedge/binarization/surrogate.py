"""The sign with a surrogate gradient: forward is always ``sign(x)``, backward multiplies the gradient by ``m(x)``.

================  ==========================================================  ==========================================
name              multiplier m(x)                                             source
================  ==========================================================  ==========================================
identity          1                                                           Bengio et al. 2013, arXiv:1308.3432
clipped_identity  1 if abs(x) <= c else 0; the derivative of hardtanh, c = 1  Hubara et al. 2016, arXiv:1602.02830
approx_sign       max(2 - 2 abs(x), 0)                                        Liu et al. 2018, arXiv:1808.00278
swish_sign        b (2 - b x tanh(b x / 2)) / (1 + cosh(b x))                 Darabi et al. 2018, arXiv:1812.11800
tanh              k t (1 - tanh(t x)^2)                                       Qin et al. 2020, arXiv:1909.10788
error_decay       max(k (sqrt(2) t - t^2 abs(x)), 0)                          Lin et al. 2020, arXiv:2009.13055
================  ==========================================================  ==========================================
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bnnedge.binarization.sign import sign
from bnnedge.errors import ConfigError, UnknownNameError

Surrogate = Callable[[Tensor], Tensor]


class _SignWithMultiplier(torch.autograd.Function):
    """``sign(x)`` forward, ``g * multiplier(x)`` backward.

    It keeps ``x`` for the backward pass, not the multiplier: a parameter stays in memory anyway, and other operators
    often keep an activation too.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, multiplier: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.multiplier = multiplier
        ctx.save_for_backward(x)
        return sign(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.multiplier(x).mul_(grads[0]), None


def sign_with_multiplier(x: Tensor, multiplier: Callable[[Tensor], Tensor]) -> Tensor:
    """``sign(x)`` whose gradient is multiplied by ``multiplier(x)``.

    ``multiplier`` must return a new tensor, which is overwritten. No gradient flows through it.
    """
    return _SignWithMultiplier.apply(x, multiplier)  # type: ignore[no-any-return, no-untyped-call]


class _ClippedIdentity(torch.autograd.Function):
    """``sign(x)`` forward, ``g 1{abs(x) <= clip}`` backward.

    For the backward pass it keeps a parameter itself, and of an activation one byte for each element.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: float) -> Tensor:
        ctx.clip = clip
        ctx.save_for_backward(x if isinstance(x, nn.Parameter) else x.abs() <= clip)
        return sign(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        if kept.dtype == torch.bool:
            # A conversion from bytes to float32 is many times faster on a CPU than one from bools.
            return kept.view(torch.uint8).to(grads[0].dtype).mul_(grads[0]), None
        return within(kept, ctx.clip).mul_(grads[0]), None


def within(x: Tensor, clip: float) -> Tensor:
    """``1{abs(x) <= clip}`` in the dtype of ``x``."""
    magnitude = x.abs()
    return torch.le(magnitude, clip, out=magnitude)


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


def clipped_identity(x: Tensor, clip: float = 1.0) -> Tensor:
    """``sign(x)`` whose gradient passes where ``abs(x) <= clip``, as in Larq.

    Both bounds pass the gradient. In BNEW's code the upper bound does not, in PyTorch's hardtanh neither does.
    """
    return _ClippedIdentity.apply(x, clip)  # type: ignore[no-any-return, no-untyped-call]


def approx_sign(x: Tensor) -> Tensor:
    """``sign(x)`` with the derivative of Bi-Real Net's piecewise quadratic, ``max(2 - 2 abs(x), 0)``."""
    return sign_with_multiplier(x, lambda v: v.abs().mul_(-2).add_(2).clamp_min_(0))


def swish_sign(x: Tensor, beta: float = 5.0) -> Tensor:
    """``sign(x)`` with the derivative of SignSwish, ``b (2 - b x tanh(b x / 2)) / (1 + cosh(b x))``.

    The peak is ``b`` at 0; beyond ``abs(x)`` of about ``2.4 / b`` it is negative.
    """

    def multiplier(v: Tensor) -> Tensor:
        bv = beta * v
        return beta * (2 - bv * (bv / 2).tanh()) / (1 + bv.cosh())  # Where cosh overflows to infinity, this is 0.

    return sign_with_multiplier(x, multiplier)


def tanh(x: Tensor, t: float = 1.0, k: float = 1.0) -> Tensor:
    """``sign(x)`` with the derivative of ``k tanh(t x)``, ``k t (1 - tanh(t x)^2)``."""
    return sign_with_multiplier(x, lambda v: k * t * (1 - (t * v).tanh().square()))


def error_decay_multiplier(x: Tensor, t: float, k: float, scale: float | Tensor = 1.0) -> Tensor:
    """RBNN's multiplier ``max(k (sqrt(2) t - t^2 abs(scale x)), 0)``, whose t and k change during training.

    It is above 0 where ``abs(scale x) < sqrt(2) / t``, and largest at 0, with ``k sqrt(2) t``. ``scale`` must be at
    least 0.
    """
    return x.abs().mul_(-k * t**2 * scale).add_(k * math.sqrt(2) * t).clamp_min_(0)


SURROGATES: dict[str, Surrogate] = {
    "identity": identity,
    "clipped_identity": clipped_identity,
    "approx_sign": approx_sign,
    "swish_sign": swish_sign,
    "tanh": tanh,
}


def clip_of(surrogate: Surrogate) -> float | None:
    """The c of a surrogate whose multiplier is 1 where ``abs(x) <= c``, else 0; None if it is of another kind.

    The c of ``identity`` is infinite, that of ``clipped_identity`` is its ``clip``.
    """
    if surrogate is identity:
        return math.inf
    if isinstance(surrogate, functools.partial) and surrogate.func is clipped_identity:
        return float(surrogate.keywords["clip"])
    return 1.0 if surrogate is clipped_identity else None


_CLIPPED = {"clipped_identity": "clip"}
_SLOPED = {"swish_sign": "beta", "tanh": "t"}


def get_surrogate(name: str, *, clip: float = 1.0, slope: float | None = None) -> Surrogate:
    """The surrogate called ``name``; ``clip`` is clipped_identity's, ``slope`` swish_sign's beta or tanh's t.

    Raises ``UnknownNameError``, or ``ConfigError`` for a parameter that the surrogate does not have.
    """
    if name not in SURROGATES:
        raise UnknownNameError(f"unknown surrogate {name!r}; known: {', '.join(SURROGATES)}")
    parameters: dict[str, float] = {}
    for kind, value, owners in (("clip", None if clip == 1 else clip, _CLIPPED), ("slope", slope, _SLOPED)):
        if value is None:
            continue
        if name not in owners:
            raise ConfigError(f"surrogate {name} has no {kind}; it belongs to {' and '.join(owners)}")
        parameters[owners[name]] = value
    return functools.partial(SURROGATES[name], **parameters) if parameters else SURROGATES[name]
