"""Bop2: Bop with a moving average of gradients that is divided by the root of that of their squares, as in Adam."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bnnedge.errors import ConfigError
from bnnedge.methods.bop import Bop, BopOptimizer, BopOptions, Published
from bnnedge.methods.method import Defaults

EPSILON = 1e-10
"""Added to the root of the second moment. It belongs to the published settings, since that root can be as small."""

Variant = Literal["biased", "unbiased"]


@dataclass
class Bop2Options(BopOptions):
    """Options of ``--method bop2``."""

    variant: Variant = "biased"
    """biased takes the moving averages as they are, unbiased divides them by gamma and sigma."""
    threshold: float | None = None
    """tau: a weight flips where its normalized moving average has its sign and a magnitude above this (none: 1e-5, with
    threshold_end 1e-8)."""
    gamma: float | None = None
    """Weight of the newest gradient in its moving average, the adaptivity rate (none: 1e-2, with gamma_end 1e-5)."""
    sigma: float | None = None
    """Weight of the newest squared gradient in its moving average (none: 1e-7, with sigma_end 1e-2)."""
    sigma_decay: float | None = None
    """sigma is multiplied by this after every decay_epochs (exponential staircase)."""
    sigma_end: float | None = None
    """sigma comes to this value on a polynomial."""

    published: ClassVar[Published] = {"threshold": (1e-5, 1e-8), "gamma": (1e-2, 1e-5), "sigma": (1e-7, 1e-2)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant == "unbiased" and 0 in (self.gamma_end, self.sigma_end):
            raise ConfigError("variant unbiased divides by gamma and sigma: gamma_end and sigma_end must be above 0")


class Bop2Optimizer(BopOptimizer):
    """Flips binary weights by the rule that ``Bop2`` gives. The state of a parameter is ``m`` and ``v``."""

    def __init__(
        self, parameters: Iterable[Any], threshold: float, gamma: float, sigma: float, variant: Variant = "biased"
    ) -> None:
        super().__init__(parameters, threshold, gamma, sigma=sigma)
        self._unbiased = variant == "unbiased"

    def evidence(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        m = self._average("m", parameter, gradient, group["gamma"])
        v = self._average("v", parameter, gradient.square(), group["sigma"])
        if self._unbiased:
            m, v = m / group["gamma"], v / group["sigma"]
        root = v.sqrt().add_(EPSILON)
        return torch.div(m, root, out=root)


class Bop2(Bop):
    """Flips binary weights without a latent copy as ``Bop`` does, by a second-order rule.

    In each step, with g the gradient at the binary weight w and m = v = 0 at the start,

    1. ``m <- (1 - gamma) m + gamma g``;
    2. ``v <- (1 - sigma) v + sigma g^2``;
    3. ``u = m / (sqrt(v) + e)`` if biased, ``u = (m / gamma) / (sqrt(v / sigma) + e)`` if unbiased, with e = 1e-10;
    4. ``w <- -w`` where ``w u > tau``.

    The unbiased form divides by the present gamma and sigma in every step. That is not Adam's bias correction: up to e
    it is the biased form with the threshold ``tau gamma / sqrt(sigma)``.

    Each of tau, gamma and sigma is constant, or follows an exponential staircase or a polynomial in the step. All other
    parameters belong to the run's optimizer. A weight needs memory for w, g, m and v.

    Differs from the published code as ``Bop`` does. In addition schedules are computed in double precision; there it is
    float32, in which the published sigma starts at 9.965e-8 in place of 1e-7. The published runs on CIFAR-10 with
    constant values have ``--threshold 1e-6 --gamma 1e-7 --sigma 1e-3``, batch size 100 and 150 epochs.

    The defaults are those published for CIFAR-10, with batch size 50, 500 epochs and ``--lr-type poly --lr-every step
    --lr-end 1e-3`` for the other parameters. Those for ImageNet are ``--threshold 1e-8 --threshold-end 1e-5
    --gamma 1e-4 --gamma-end 1e-9 --sigma 1e-5 --sigma-end 1e-2 --lr 2.5e-3 --lr-end 5e-6`` with batch size 1024.

    Suarez-Ramirez, Gonzalez-Mendoza, Chang, Ochoa-Ruiz, Duran-Vega 2021, "A Bop and Beyond: A Second Order Optimizer
    for Binarized Neural Networks", CVPR Workshops, arXiv:2104.05124.
    """

    paper = "Suarez-Ramirez et al. 2021, A Bop and Beyond, arXiv:2104.05124"
    Options = Bop2Options
    defaults = Defaults(optimizer="adam", lr=1e-2)
    options: Bop2Options

    def build(self, weights: Iterable[Tensor]) -> BopOptimizer:
        return Bop2Optimizer(weights, **self._values(0), variant=self.options.variant)
