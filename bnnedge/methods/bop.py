"""Bop: an optimizer that flips binary weights, which have no latent copy, by the moving average of their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bnnedge import schedules
from bnnedge.binarization.activation import ActivationBinarizer, ActivationOptions
from bnnedge.binarization.binarizer import Binarizer
from bnnedge.binarization.sign import sign, sign_around
from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryLayer, binary_layers
from bnnedge.methods.method import Defaults, Method, PhaseSize

Published = dict[str, tuple[float, float | None]]
"""The start and the end of each option that may change with the step; the end of a constant is None."""


@dataclass
class BopOptions(ActivationOptions):
    """Options of ``--method bop``."""

    threshold: float | None = None
    """tau: a weight flips where its moving average of gradients has its sign and a magnitude above this (none: 1e-8).
    """
    threshold_decay: float | None = None
    """threshold is multiplied by this after every decay_epochs (exponential staircase)."""
    threshold_end: float | None = None
    """threshold comes to this value on a polynomial."""
    gamma: float | None = None
    """Weight of the newest gradient in its moving average, the adaptivity rate (none: 1e-4, with gamma_end 1e-6)."""
    gamma_decay: float | None = None
    """gamma is multiplied by this after every decay_epochs (exponential staircase)."""
    gamma_end: float | None = None
    """gamma comes to this value on a polynomial."""
    decay_epochs: int | None = None
    """Epochs between two factors of a staircase, or the length of the polynomials (none: all epochs)."""
    decay_power: float = 1.0
    """Power of the polynomials; 1 is linear."""

    published: ClassVar[Published] = {"threshold": (1e-8, None), "gamma": (1e-4, 1e-6)}
    """The values of options that the user does not give."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (start, end) in self.published.items():
            if getattr(self, name) is None:
                setattr(self, name, start)
                if not self.changes(name):
                    setattr(self, f"{name}_end", end)
            self._check(name)
        if self.decay_epochs is not None and self.decay_epochs < 1:
            raise ConfigError(f"decay_epochs must be at least 1, got {self.decay_epochs}")
        if not self.decay_power > 0:
            raise ConfigError(f"decay_power must be above 0, got {self.decay_power}")
        ends = [f"{name}_end" for name in self.published]
        if self.decay_power != 1 and all(getattr(self, end) is None for end in ends):
            raise ConfigError(f"decay_power belongs to {' or '.join(ends)}; leave it out without one")
        if self.decay_epochs is not None and not any(self.changes(name) for name in self.published):
            raise ConfigError(
                f"decay_epochs belongs to {' or '.join(ends)}, or the same with _decay; leave it out without one"
            )

    def changes(self, name: str) -> bool:
        """Whether the option ``name`` changes with the step."""
        return getattr(self, f"{name}_decay") is not None or getattr(self, f"{name}_end") is not None

    def at(self, name: str, step: int, size: PhaseSize) -> float:
        """The value of the option ``name`` in step ``step``, counted from 0.

        - ``NAME_decay`` r: ``NAME r^floor(step / S)`` with S = ``decay_epochs`` in steps;
        - ``NAME_end``: ``(NAME - NAME_end) (1 - min(step, T) / T)^decay_power + NAME_end`` with T = ``decay_epochs``,
          or the whole phase, in steps.
        """
        start, rate, end = (getattr(self, name + ending) for ending in ("", "_decay", "_end"))
        steps = (self.decay_epochs or size.epochs) * size.steps_per_epoch
        if rate is not None:
            return schedules.staircase(step, steps, start, rate)
        if end is not None:
            return schedules.polynomial(step, steps, start, end, self.decay_power)
        return float(start)

    def _check(self, name: str) -> None:
        start, rate, end = (getattr(self, name + ending) for ending in ("", "_decay", "_end"))
        if name == "threshold":
            checks = [
                (name, start, start >= 0, "at least 0"),
                (f"{name}_end", end, end is None or end >= 0, "at least 0"),
            ]
        else:
            checks = [
                (name, start, 0 < start <= 1, "above 0 and at most 1"),
                (f"{name}_end", end, end is None or 0 <= end <= 1, "from 0 to 1"),
            ]
        checks.append((f"{name}_decay", rate, rate is None or 0 < rate <= 1, "above 0 and at most 1"))
        for option, value, sound, words in checks:
            if not sound:
                raise ConfigError(f"{option} must be {words}, got {value}")
        if rate is not None and end is not None:
            raise ConfigError(f"give {name}_decay (staircase) or {name}_end (polynomial), not both")
        if rate is not None and self.decay_epochs is None:
            raise ConfigError(f"{name}_decay needs decay_epochs, e.g. --decay-epochs 100")


class BopBinarizer(ActivationBinarizer):
    """``sign(x)``, and the weight itself, which is binary already; eval mode takes its sign in case it is not."""

    @property
    def has_binary_weight(self) -> bool:
        return True

    def binarize_weight(self, weight: Tensor) -> Tensor:
        return weight if self.training else sign(weight)


class BopOptimizer(torch.optim.Optimizer):
    """Flips binary weights by the rule that ``Bop`` gives.

    A group holds ``threshold``, ``gamma`` and ``step``, the number of steps taken; the state of a parameter is ``m``.
    A weight that is not -1 or +1 yet becomes so in its first step.
    """

    def __init__(self, parameters: Iterable[Any], threshold: float, gamma: float, **more: float) -> None:
        super().__init__(parameters, {"threshold": threshold, "gamma": gamma, **more, "step": 0})
        self.flips: dict[Tensor, Tensor] = {}
        """How often weights of each parameter flipped since this was last cleared; a tensor on its device."""

    def evidence(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        """What is compared with the threshold, after an update by the new gradient."""
        return self._average("m", parameter, gradient, group["gamma"])

    def _average(self, name: str, parameter: Tensor, new: Tensor, rate: float) -> Tensor:
        """``a <- (1 - rate) a + rate new`` for the parameter's moving average ``name``, which starts at 0."""
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        average: Tensor = state[name]
        return average.lerp_(new, rate)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
            group["step"] += 1
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        held = (parameter * self.evidence(parameter, parameter.grad, group)).neg_()
        factor = sign_around(held, -group["threshold"])  # The factor is -1 where w m > tau.
        parameter.copy_(sign(parameter).mul_(factor))
        self.flips[parameter] = self.flips.get(parameter, 0) + torch.count_nonzero(factor < 0)


class Bop(Method[BopOptions]):
    """Flips weights that are -1 and +1 from the first step on, and have no latent copy.

    In each step, with g the gradient at the binary weight w (algorithm 1),

    1. ``m <- (1 - gamma) m + gamma g``, with m = 0 at the start;
    2. ``w <- -w`` where ``w m > tau``, that is where m has the sign of w and a magnitude above tau.

    Each of tau and gamma is constant, or follows an exponential staircase or a polynomial in the step. All other
    parameters belong to the run's optimizer. A weight needs memory for w, g and m.

    Differs from the published code in three points. Weights are binarized before the first step, there within it, so
    that its gradient is that at the float initial weights. Where ``w m`` is exactly tau nothing flips, as in the paper;
    there w becomes +1. An epoch of a schedule has as many steps as the run makes in it; there it is the number of
    images over the batch size, not rounded.

    The defaults are those published for ImageNet, with batch size 1024, 150 epochs, and Adam from 2.5e-3 to 5e-6 for
    the other parameters. Those for CIFAR-10 are ``--gamma 1e-4 --gamma-decay 0.1 --decay-epochs 100`` with batch size
    50 and 500 epochs; those of BNEW ``--gamma 1e-4 --gamma-end 0 --lr-type poly --lr-every step``.

    Helwegen et al. 2019, "Latent Weights Do Not Exist: Rethinking Binarized Neural Network Optimization", NeurIPS,
    arXiv:1906.02107.
    """

    paper = "Helwegen et al. 2019, Latent Weights Do Not Exist, arXiv:1906.02107"
    Options = BopOptions
    defaults = Defaults(optimizer="adam", lr=1e-2)
    has_latent_weights = False

    _size: PhaseSize
    _optimizer: BopOptimizer | None = None

    def make_binarizer(self, layer: BinaryLayer) -> Binarizer:
        return BopBinarizer(self.options)

    @torch.no_grad()
    def start_phase(self, model: nn.Module, index: int) -> None:
        for layer in binary_layers(model).values():
            layer.weight.copy_(sign(layer.weight))

    def make_optimizer(self, model: nn.Module, size: PhaseSize) -> BopOptimizer:
        self._size = size
        self._optimizer = self.build(list(dict.fromkeys(layer.weight for layer in binary_layers(model).values())))
        return self._optimizer

    def build(self, weights: Iterable[Tensor]) -> BopOptimizer:
        """The method's optimizer over ``weights``."""
        return BopOptimizer(weights, **self._values(0))

    def start_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
        self.optimizer.flips.clear()

    def before_step(self, model: nn.Module) -> None:
        for group in self.optimizer.param_groups:
            group |= self._values(group["step"])

    def layer_metrics(self, layer: BinaryLayer) -> dict[str, float]:
        """The usual numbers, and the number of flips in all steps of the epoch."""
        return super().layer_metrics(layer) | {"flips": float(self.optimizer.flips.get(layer.weight, 0))}

    @property
    def optimizer(self) -> BopOptimizer:
        """The optimizer that ``make_optimizer`` made last."""
        if self._optimizer is None:
            raise ConfigError("the method updates the binary weights itself: call make_optimizer(model, size) first")
        return self._optimizer

    def _values(self, step: int) -> dict[str, float]:
        return {name: self.options.at(name, step, self._size) for name in self.options.published}
