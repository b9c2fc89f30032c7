"""BMD: mirror descent with primal weights tanh(beta w), which approach -1 and +1 as beta grows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bnnedge.binarization.activation import ActivationBinarizer, ActivationOptions
from bnnedge.binarization.binarizer import Binarizer
from bnnedge.binarization.sign import sign
from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryLayer, binary_layers
from bnnedge.methods.method import Defaults, Method, Phase, PhaseSize

DEFAULT_BETA_END = 1e4
"""Last beta of a run for which the user gives neither factor nor end."""
LARGEST_BETA = 1e35
"""Bound of beta. Float32 can hold it, so that beta times 0 is 0 and not NaN."""


@dataclass
class BmdOptions(ActivationOptions):
    """Options of ``--method bmd``."""

    variant: Literal["tanh", "softmax"] = "tanh"
    """tanh has one dual weight for each weight, softmax one for each of its values -1 and +1."""
    beta_scale: float | None = None
    """beta starts at 1 and is multiplied by this factor repeatedly (none: by the factor that takes it to beta_end)."""
    beta_end: float | None = None
    """beta in the last epoch before freeze_epochs (none: 1e4); give this or beta_scale."""
    beta_interval: int | None = None
    """Steps between two factors, of which the first comes after the first step (none: one factor an epoch, the first
    after the second epoch)."""
    freeze_epochs: int = 0
    """Number of epochs at the end in which the weights are fixed at their signs while the rest is trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_scale is not None and self.beta_end is not None:
            raise ConfigError("give beta_scale or beta_end, not both")
        for name in ("beta_scale", "beta_end"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.beta_interval is not None and self.beta_interval < 1:
            raise ConfigError(f"beta_interval must be at least 1 step, got {self.beta_interval}")
        if self.freeze_epochs < 0:
            raise ConfigError(f"freeze_epochs must be at least 0, got {self.freeze_epochs}")


class _MirrorStep(torch.autograd.Function):
    """``u = tanh(beta d)`` of the dual ``d``, whose gradient passes unchanged: a mirror step updates d with dL/du."""

    @staticmethod
    def forward(ctx: Any, dual: Tensor, beta: float) -> Tensor:
        return (beta * dual).tanh_()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class BmdBinarizer(ActivationBinarizer):
    """The primal weight: ``tanh(beta w)`` or, for two duals, ``tanh(beta (w - negative) / 2)``.

    In eval mode and once it is frozen, its sign takes its place.
    """

    beta = 1.0
    frozen = False
    negative: nn.Parameter | None

    def __init__(self, layer: BinaryLayer, options: BmdOptions) -> None:
        super().__init__(options)
        negative = torch.zeros_like(layer.weight) if options.variant == "softmax" else None
        self.register_parameter("negative", None if negative is None else nn.Parameter(negative))

    @property
    def has_binary_weight(self) -> bool:
        return not self.training or self.frozen

    def binarize_weight(self, weight: Tensor) -> Tensor:
        return self.primal(weight) if self.training and not self.frozen else sign(self._difference(weight))

    def primal(self, weight: Tensor) -> Tensor:
        """The weight in (-1, 1) with which a training step computes."""
        beta = self.beta if self.negative is None else self.beta / 2
        return _MirrorStep.apply(self._difference(weight), beta)  # type: ignore[no-any-return, no-untyped-call]

    def freeze(self, weight: Tensor) -> None:
        """Turn off the gradients of the duals, so that no optimizer moves them any more."""
        self.frozen = True
        for dual in (weight, self.negative):
            if dual is not None:
                dual.requires_grad_(False)
                dual.grad = None

    def _difference(self, weight: Tensor) -> Tensor:
        return weight if self.negative is None else weight - self.negative


class Bmd(Method[BmdOptions]):
    """Trains by mirror descent in its numerically stable form, MD-tanh-S or MD-softmax-S, with binary activations.

    The optimizer updates dual weights. In each step, with g the gradient at the primal weight u,

    - ``variant="tanh"``: ``u = tanh(beta w)``; w is updated with g;
    - ``variant="softmax"``: ``p+, p- = softmax(beta w+, beta w-)``, ``u = p+ - p- = tanh(beta (w+ - w-) / 2)``; w+ is
      updated with g and w- with -g. w+ is the layer's weight, w- starts at 0.

    The update leaves out the factor du/dw. That makes it a mirror step, ``u <- tanh(atanh(u) - beta eta d)`` for the
    optimizer's update ``w <- w - eta d``. Evaluation and export use sign(w) or sign(w+ - w-).

    beta starts at 1 and is multiplied by r = ``beta_scale`` repeatedly, up to 1e35. After n steps, and in epoch e
    counted from 0, it is

    - ``beta = r^ceil(n / K)`` with ``beta_interval`` K, as Ajanthan et al. published it;
    - else ``beta = r^max(e - 1, 0)``, as in BNEW's code. The published setting there is r = 1.01 over 1000 epochs with
      weights frozen at the end of epoch 980 (``--beta-scale 1.01 --freeze-epochs 19``). The default r takes beta to 1e4
      in a run of any length.

    Differs from the papers: the first and the last layer and all parameters that are no weights stay float, and
    activations are binary, unless ``--a32`` is given. During ``freeze_epochs`` the network is trained with sign(w), and
    w itself is kept. Duals start at the network's own initialization; in the published code they start at Xavier's,
    drawn for both w+ and w-.

    Ajanthan, Gupta, Torr, Hartley, Dokania 2021, "Mirror Descent View for Neural Network Quantization", AISTATS,
    arXiv:1910.08237, algorithm 1.
    """

    paper = "Ajanthan et al. 2021, Mirror Descent View for Neural Network Quantization, arXiv:1910.08237"
    Options = BmdOptions
    defaults = Defaults(optimizer="adam", lr=1e-2, lr_type="poly", lr_every="step")

    _steps_per_epoch: int | None = None

    def make_binarizer(self, layer: BinaryLayer) -> Binarizer:
        return BmdBinarizer(layer, self.options)

    def phases(self, epochs: int) -> tuple[Phase, ...]:
        if self.options.freeze_epochs >= epochs:
            raise ConfigError(f"freeze_epochs ({self.options.freeze_epochs}) must be below epochs ({epochs})")
        return super().phases(epochs)

    def make_optimizer(self, model: nn.Module, size: PhaseSize) -> None:
        self._steps_per_epoch = size.steps_per_epoch

    def start_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
        growing = epochs - self.options.freeze_epochs
        if epoch >= growing:
            for layer in binary_layers(model).values():
                _binarizer(layer).freeze(layer.weight)
        interval, steps_per_epoch = self.options.beta_interval, self._steps_per_epoch
        if interval is None:
            self._last_factor = max(growing - 2, 1)
            self._set_beta(model, max(epoch - 1, 0))
        elif steps_per_epoch is None:
            raise ConfigError("beta_interval counts steps: call make_optimizer(model, size) first")
        else:
            self._steps = epoch * steps_per_epoch
            self._last_factor = max(math.ceil((growing * steps_per_epoch - 1) / interval), 1)
            self._set_beta(model, math.ceil(self._steps / interval))

    def after_step(self, model: nn.Module) -> None:
        if self.options.beta_interval is not None:
            self._steps += 1
            self._set_beta(model, math.ceil(self._steps / self.options.beta_interval))

    @torch.no_grad()
    def layer_metrics(self, layer: BinaryLayer) -> dict[str, float]:
        """The usual numbers, but the distance to binary is that of the primal weight."""
        binarizer = _binarizer(layer)
        distance = 0.0 if binarizer.frozen else float((1 - binarizer.primal(layer.weight).abs()).mean())
        return super().layer_metrics(layer) | {"distance_to_binary": distance}

    def _set_beta(self, model: nn.Module, factors: int) -> None:
        scale = self.options.beta_scale
        if scale is None:
            end = DEFAULT_BETA_END if self.options.beta_end is None else self.options.beta_end
            scale = end ** (1 / self._last_factor)
        huge = factors * math.log(scale) >= math.log(LARGEST_BETA)
        beta = LARGEST_BETA if huge else scale**factors
        for layer in binary_layers(model).values():
            _binarizer(layer).beta = beta


def _binarizer(layer: BinaryLayer) -> BmdBinarizer:
    assert isinstance(layer.binarizer, BmdBinarizer)
    return layer.binarizer
