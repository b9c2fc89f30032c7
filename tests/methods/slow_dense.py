"""A second, slow implementation of two binary dense layers in NumPy float64, for the methods' trajectories.

``y = h2 w2_b^T``, ``h2 = s(h)``, ``h = h1 w1_b^T``, ``h1 = s(x)``, loss ``mean (y - target)^2``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bnnedge.layers.binary_layers import BinaryLinear

Array = NDArray[np.float64]


def sgn(x: Array) -> Array:
    """-1 below 0, else +1."""
    return np.where(x < 0, -1.0, 1.0)


class TwoLayers(nn.Module):
    """The same network with the library's layers, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = BinaryLinear(5, 7), BinaryLinear(7, 3)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]


def example() -> tuple[Array, Array]:
    """Inputs [6, 5], exact zeros of both signs and both bounds among them, and targets [6, 3]."""
    random = np.random.default_rng(7)
    x = random.normal(size=(6, 5))
    x[0, :4] = (0.0, -0.0, 1.0, -1.0)
    return x, random.normal(size=(6, 3)) * 4


@dataclass
class Adam:
    """Kingma and Ba 2015, algorithm 1."""

    lr: float
    m: dict[str, Array] = field(default_factory=dict)
    v: dict[str, Array] = field(default_factory=dict)
    t: int = 0

    def step(self, weights: dict[str, Array], gradients: dict[str, Array]) -> None:
        self.t += 1
        for name, g in gradients.items():
            self.m[name] = 0.9 * self.m.get(name, 0) + 0.1 * g
            self.v[name] = 0.999 * self.v.get(name, 0) + 0.001 * g**2
            m, v = self.m[name] / (1 - 0.9**self.t), self.v[name] / (1 - 0.999**self.t)
            weights[name] = weights[name] - self.lr * m / (np.sqrt(v) + 1e-8)


def gradients(
    x: Array,
    target: Array,
    effective: dict[str, Array],
    multiplier: Callable[[Array], Array] | None,
) -> dict[str, Array]:
    """Loss gradients at the effective weights ``first`` [7, 5] and ``second`` [3, 7]; no multiplier: W1A32."""
    quantize = (lambda v: v) if multiplier is None else sgn
    h1 = quantize(x)
    h = h1 @ effective["first"].T
    h2 = quantize(h)
    y = h2 @ effective["second"].T
    dy = 2 * (y - target) / y.size
    dh = dy @ effective["second"]
    dh = dh if multiplier is None else dh * multiplier(h)
    return {"first": dh.T @ h1, "second": dy.T @ h2}
