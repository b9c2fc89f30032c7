"""BNEW: float weights that a concave regularizer drives to -1 and +1, without latent weights at any time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bnnedge.binarization.activation import ActivationBinarizer, ActivationOptions
from bnnedge.binarization.binarizer import Binarizer
from bnnedge.binarization.scale import channel_scale
from bnnedge.binarization.sign import sign
from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryLayer, binary_layers
from bnnedge.methods.method import Defaults, Method, Phase, PhaseSize, check_phases, share_epochs

SHARES = {1: 128.0, 2: 401.0, 3: 200.0}
"""Epochs of the phases in the settings published for ImageNet."""
GROWTH = 35.2
"""rho times the steps of phase 2 in the settings published for CIFAR-10: 1e-4 and 1000 epochs of 352 steps."""


def _magnitude(w: Tensor) -> Tensor:
    """``mean abs(w_o)`` [O]. Where all weights of a channel have one magnitude, it is exactly that magnitude.

    A mean that was rounded would change frozen weights.
    """
    low, high = w.detach().flatten(1).abs().aminmax(dim=1)
    return torch.where(low == high, high, channel_scale(w))


def _scaled_sign(w: Tensor) -> Tensor:
    """``mean abs(w_o) sign(w)``, the mean per output channel."""
    return _magnitude(w).view(-1, *[1] * (w.dim() - 1)) * sign(w)


def _concave(w: Tensor, rho: float) -> Tensor:
    return w + 2 * rho * w


def _quartic(w: Tensor, rho: float) -> Tensor:
    return w + 4 * rho * w**3


def _l1(w: Tensor, rho: float) -> Tensor:
    return w + rho * sign(w)


def _l2(w: Tensor, rho: float) -> Tensor:
    return (w + rho * sign(w)) / (1 + rho)


def _scaled(w: Tensor, rho: float) -> Tensor:
    distance = w - _scaled_sign(w)
    return w - distance.clamp(-rho, rho)


def _cosine(w: Tensor, rho: float) -> Tensor:
    flat = w.flatten(1)
    norm = flat.norm(dim=1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    unit = flat / norm
    length = math.sqrt(flat.shape[1])  # This is the norm of sign(w_o).
    cosine = unit.abs().sum(1, keepdim=True) / length
    gradient = (sign(flat) / length - cosine * unit) / norm
    moved: Tensor = flat + rho * gradient
    return moved.view_as(w)


REGULARIZERS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "concave": _concave,
    "quartic": _quartic,
    "l1": _l1,
    "l2": _l2,
    "scaled": _scaled,
    "cosine": _cosine,
}
"""What a step of phase 2 makes of a weight at strength rho, before it is clamped to [-1, 1]; see ``Bnew``."""


@dataclass
class BnewOptions(ActivationOptions):
    """Options of ``--method bnew``."""

    surrogate: str = "approx_sign"
    """Surrogate gradient of the activations' sign: identity, clipped_identity, approx_sign, swish_sign or tanh."""
    phases: tuple[int, ...] = (1, 2, 3)
    """Phases to run: in 1 weights are float, in 2 regularized towards -1 and +1, in 3 frozen there while the rest is
    fine-tuned."""
    phase_epochs: tuple[int, ...] = ()
    """Epochs of each phase, which add up to epochs (empty: in the proportion 128 : 401 : 200)."""
    regularizer: str = "concave"
    """Update of phase 2: concave, quartic, l1, l2, scaled or cosine."""
    rho: float | None = None
    """Strength rho_0 at the end of phase 2 (none: 35.2 over its steps, which is the published 1e-4 at the published
    length)."""
    placement: Literal["after_step", "before_step"] = "after_step"
    """Whether to regularize after the optimizer's step, which keeps weights within [-1, 1], or before it."""
    freeze_epochs: int | None = None
    """Number of epochs at the end of phase 2 in which weights are frozen (none: 1.9 %, or 0 if phase 3 follows)."""
    freeze_at: Literal["sign", "scaled_sign"] | None = None
    """The values that weights freeze at: sign(w), or mean abs(w_o) sign(w) (none: the latter for regularizer scaled,
    else the former)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_phases(self.phases, 3)
        if self.regularizer not in REGULARIZERS:
            raise ConfigError(f"regularizer must be one of {', '.join(REGULARIZERS)}, got {self.regularizer!r}")
        for name, known in (
            ("placement", ("after_step", "before_step")),
            ("freeze_at", ("sign", "scaled_sign", None)),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {known[0]}, {known[1]}, got {getattr(self, name)!r}")
        if self.rho is not None and not self.rho > 0:
            raise ConfigError(f"rho must be above 0, got {self.rho}")
        if self.freeze_epochs is not None and self.freeze_epochs < 0:
            raise ConfigError(f"freeze_epochs must be at least 0, got {self.freeze_epochs}")

    @property
    def freezes_scaled(self) -> bool:
        """Whether frozen weights keep the mean magnitude of their channel."""
        return (self.freeze_at or ("scaled_sign" if self.regularizer == "scaled" else "sign")) == "scaled_sign"


class BnewBinarizer(ActivationBinarizer):
    """``sign(x)``, and the weight itself in training.

    In eval mode its sign takes its place, and its magnitude may be the output's scale.
    """

    def __init__(self, options: BnewOptions) -> None:
        super().__init__(options)
        self._scaled = options.freezes_scaled

    def binarize_weight(self, weight: Tensor) -> Tensor:
        return weight if self.training else sign(weight)

    def output_scale(self, weight: Tensor) -> Tensor | None:
        return _magnitude(weight) if self._scaled and not self.training else None


class Bnew(Method[BnewOptions]):
    """Trains without latent weights in three phases, each with a new Adam optimizer.

    The learning rate of each falls linearly to 0.

    1. ``y = conv(sign(x), w)`` with float weights in the convex hull of the binary ones: ``w <- clamp(w, -1, 1)`` in
       every step.
    2. The same from there on with the concave regularizer ``-rho sum w^2``: ``w <- clamp(w + 2 rho_e w, -1, 1)`` in
       every step. This is a step of gradient descent on the regularizer, to which neither the learning rate nor Adam's
       moments apply. In epoch e of E it is ``rho_e = min(rho_0 max(e, 1) / E, 1)``. For the last ``freeze_epochs``
       weights are frozen at ``sign(w)``.
    3. Weights are frozen at ``sign(w)``, and the rest of the network is fine-tuned.

    The activations' sign passes the gradient as in ReActNet (``approx_sign``). Validation and test use ``sign(w)``, so
    their scores are poor until phase 2 has brought the weights there, which ``distance_to_binary`` shows. With
    s = sign(w), the other ``regularizer`` updates are, before the clamp:

    ========  ============================================================================================
    quartic   ``w + 4 rho w^3``
    l1        ``w + rho s``
    l2        ``(w + rho s) / (1 + rho)``
    scaled    ``w - clamp(d, -rho, rho)`` with ``d = w - mean abs(w_o) s``, the mean per output channel
    cosine    ``w + rho d/dw cos(w_o, s_o)``, the ascent of each filter's cosine similarity with its sign
    ========  ============================================================================================

    Differs from the published code, where these points are slips or the two versions disagree:

    - Placement: there the regularizer comes before Adam's step for CIFAR and after it for ImageNet. Here it comes after
      it, which keeps every weight within [-1, 1] at all times; ``--placement before_step`` is the other.
    - Freezing: there it is repeated at a list of epochs, since the optimizer went on moving frozen weights by its
      momentum. Here it happens once, and frozen weights never move. The published list, 980 to 999 of 1000, freezes at
      the end of these epochs, so that 19 are trained with frozen weights.
    - The end: there the CIFAR code looks for a file that it has not written, and fails after training. Here the best
      epoch of the last phase is kept, and can always be deployed.
    - Phase 3: there the regularizer goes on multiplying frozen weights. Here they stay.
    - Ternary variants are left out, since a deploy form of -1 and +1 cannot hold them. So sign(0) is +1 in every update
      above.
    - The learning rate at step t of T is ``lr (1 - t / T)``. There it is ``lr (1 - t / (T - 1))``, with which the last
      step learns nothing.

    Without phase 1 (``--phases 2,3``) a run starts from the weights of ``--init``, and is refused without one.

    BNEW, BMVC 2022; code at github.com/Alasdair-P/bnew.
    """

    paper = "BNEW, BMVC 2022, github.com/Alasdair-P/bnew"
    Options = BnewOptions
    defaults = Defaults(optimizer="adam", lr=1e-2, lr_type="poly", lr_every="step")

    def __init__(self, options: BnewOptions) -> None:
        super().__init__(options)
        self._regularizer = REGULARIZERS[options.regularizer]
        # These three are set from the phase, its size and the epoch before the first step of every epoch.
        self._phase = options.phases[0]
        self._rho = 0.0
        self._steps = 0

    @property
    def needs_init(self) -> bool:
        return 1 not in self.options.phases

    def make_binarizer(self, layer: BinaryLayer) -> Binarizer:
        return BnewBinarizer(self.options)

    def phases(self, epochs: int) -> tuple[Phase, ...]:
        chosen = self.options.phases
        lengths = share_epochs(epochs, [SHARES[p] for p in chosen], self.options.phase_epochs)
        names = {1: "float weights", 2: "regularized weights", 3: "frozen weights"}
        phases = tuple(Phase(names[p], n) for p, n in zip(chosen, lengths, strict=True))
        frozen = self.options.freeze_epochs or 0
        if 2 in chosen and frozen > lengths[chosen.index(2)]:
            raise ConfigError(f"freeze_epochs ({frozen}) is more than phase 2 has ({lengths[chosen.index(2)]})")
        return phases

    def start_phase(self, model: nn.Module, index: int) -> None:
        self._phase = self.options.phases[index]
        if self._phase == 3:
            self._freeze(model)

    def make_optimizer(self, model: nn.Module, size: PhaseSize) -> None:
        self._steps = size.steps  # The default rho needs them. The run's optimizer takes all parameters.

    def start_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
        if self._phase == 2:
            self._rho = rho_of_epoch(epoch, epochs, self.options.rho or GROWTH / (self._steps or epochs))
            if epoch >= epochs - self.frozen_epochs(epochs):
                self._freeze(model)

    def frozen_epochs(self, epochs: int) -> int:
        """How many epochs at the end of phase 2, which has ``epochs``, are trained with frozen weights."""
        if self.options.freeze_epochs is not None:
            return self.options.freeze_epochs
        return 0 if 3 in self.options.phases else min(max(epochs * 19 // 1000, 1), epochs - 1)

    def before_step(self, model: nn.Module) -> None:
        if self.options.placement == "before_step":
            self._regularize(model)

    def after_step(self, model: nn.Module) -> None:
        if self.options.placement == "after_step":
            self._regularize(model)

    @torch.no_grad()
    def _regularize(self, model: nn.Module) -> None:
        for layer in binary_layers(model).values():
            w = layer.weight
            if w.requires_grad:
                torch.clamp(self._regularizer(w, self._rho) if self._phase == 2 else w, -1, 1, out=w)

    @torch.no_grad()
    def _freeze(self, model: nn.Module) -> None:
        for layer in binary_layers(model).values():
            w = layer.weight
            if w.requires_grad:
                w.copy_(_scaled_sign(w) if self.options.freezes_scaled else sign(w))
                w.requires_grad_(False)
            w.grad = None


def rho_of_epoch(epoch: int, epochs: int, rho: float) -> float:
    """``min(rho max(e, 1) / E, 1)`` in epoch e of E; epochs 0 and 1 share a value, as in the published code."""
    return min(rho * max(epoch, 1) / epochs, 1.0)
