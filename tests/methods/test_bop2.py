"""Second-order Bop against a second implementation that goes weight by weight in Python floats."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import binary_layers
from bnnedge.methods import bop2
from bnnedge.methods.bop2 import Bop2, Bop2Optimizer, Bop2Options, Variant
from bnnedge.methods.method import PhaseSize
from tests.methods.slow_dense import Array, TwoLayers, example, gradients, sgn


def slow_step(
    w: Array, m: Array, v: Array, g: Array, *, threshold: float, gamma: float, sigma: float, unbiased: bool
) -> int:
    """One step from the formulas alone, in place; returns the number of flips."""
    flips = 0
    for index in np.ndindex(*w.shape):
        m[index] = (1 - gamma) * m[index] + gamma * g[index]
        v[index] = (1 - sigma) * v[index] + sigma * g[index] ** 2
        if unbiased:
            u = (m[index] / gamma) / (math.sqrt(v[index] / sigma) + 1e-10)
        else:
            u = m[index] / (math.sqrt(v[index]) + 1e-10)
        if w[index] * u > threshold:
            w[index] = -w[index]
            flips += 1
    return flips


@pytest.mark.parametrize("variant", ["biased", "unbiased"])
@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.3, "gamma": 0.3, "sigma": 0.2},
        {"threshold": 0.0, "gamma": 1.0, "sigma": 1.0, "a32": True},
        {"threshold": 1e-5, "threshold_end": 1.0, "gamma": 0.2, "gamma_end": 0.01, "sigma": 1e-7, "sigma_end": 0.5},
        {
            **{"threshold": 0.4, "threshold_decay": 0.9, "gamma": 0.5, "gamma_decay": 0.5},
            **{"sigma": 0.1, "sigma_decay": 0.25, "decay_epochs": 1},
        },
        {"threshold": 0.4, "gamma": 0.3, "sigma": 0.01, "sigma_end": 0.3, "decay_power": 0.5, "decay_epochs": 2},
    ],
    ids=str,
)
def test_trajectory(variant: Variant, options: dict[str, Any]) -> None:
    method = Bop2(Bop2Options(variant=variant, **options))
    model = TwoLayers()
    method.attach(model)
    w: dict[str, Array] = {n: sgn(layer.weight.detach().numpy()) for n, layer in binary_layers(model).items()}
    m, v = ({n: np.zeros_like(a) for n, a in w.items()} for _ in range(2))
    method.start_phase(model, 0)
    optimizer = method.make_optimizer(model, PhaseSize(epochs=4, steps_per_epoch=3, train_images=18))
    x, target = example()
    x[:, 4] = 0.0
    x[3:, 4] = -1.0  # some gradients of the first layer are exactly 0 with three images of each sign
    total = 0
    for step in range(12):
        method.start_epoch(model, step // 3, 4)
        optimizer.zero_grad()
        (model.train()(torch.from_numpy(x)) - torch.from_numpy(target)).square().mean().backward()
        method.before_step(model)
        optimizer.step()

        values = {}
        for name in ("threshold", "gamma", "sigma"):
            start, length = options[name], 3 * options.get("decay_epochs", 4)
            if f"{name}_decay" in options:
                start *= options[f"{name}_decay"] ** (step // length)
            if f"{name}_end" in options:
                left = max(length - step, 0) / length
                end = options[f"{name}_end"]
                start = end + (start - end) * left ** options.get("decay_power", 1)
            values[name] = start
        hardtanh = None if options.get("a32") else (lambda a: (np.abs(a) <= 1).astype(float))
        found = gradients(x, target, w, hardtanh)
        for name, layer in binary_layers(model).items():
            flips = slow_step(w[name], m[name], v[name], found[name], unbiased=variant == "unbiased", **values)
            state = optimizer.state[layer.weight]
            np.testing.assert_array_equal(layer.weight.detach().numpy(), w[name])
            np.testing.assert_allclose(state["m"].numpy(), m[name], rtol=0, atol=1e-12)
            np.testing.assert_allclose(state["v"].numpy(), v[name], rtol=0, atol=1e-12)
            assert method.layer_metrics(layer)["flips"] == flips
            total += flips
    assert total > 0


def test_ties_zeros_and_groups() -> None:
    """gamma = sigma = 1 make u = g / (abs(g) + e); float64 drops e beside 2^24."""
    w = nn.Parameter(torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0, -0.0], dtype=torch.float64))
    other = nn.Parameter(w.detach().clone())
    groups: list[dict[str, Any]] = [{"params": [w], "threshold": 1.0}, {"params": [other], "threshold": 0.0}]
    optimizer = Bop2Optimizer(groups, threshold=0.5, gamma=1.0, sigma=1.0)
    # u is 1: a tie with threshold 1, where nothing flips.
    gradient = torch.tensor([1.0, -1.0, -1.0, 0.0, 1.0, 1.0], dtype=torch.float64) * 2**24
    w.grad, other.grad = gradient, gradient.clone()
    optimizer.step()
    assert w.tolist() == [1.0, -1.0, 1.0, -1.0, 1.0, 1.0]
    assert other.tolist() == [-1.0, 1.0, 1.0, -1.0, 1.0, 1.0]
    tiny = nn.Parameter(torch.ones(2, dtype=torch.float64))
    tiny.grad = torch.tensor([1e-10, 1e-11], dtype=torch.float64)  # u = 1/2 and 1/11
    Bop2Optimizer([tiny], threshold=0.3, gamma=1.0, sigma=1.0).step()
    assert tiny.tolist() == [-1.0, 1.0], "e damps gradients of its own size"


def test_the_first_step_flips_half_of_the_weights_with_the_published_values() -> None:
    """In the first step abs(u) is gamma / sqrt(sigma) = 3.2e-6 if biased, between the two tau, and 1 if unbiased."""
    random = torch.Generator().manual_seed(0)
    cases: list[tuple[Variant, float, bool]] = [
        ("biased", 1e-6, True),
        ("biased", 1e-5, False),
        ("unbiased", 1e-5, True),
    ]
    for variant, threshold, flips in cases:
        w = nn.Parameter(torch.randn(64, 33, generator=random).sign())
        start = w.detach().clone()
        w.grad = torch.randn(64, 33, generator=random)
        optimizer = Bop2Optimizer([w], threshold, gamma=1e-7, sigma=1e-3, variant=variant)
        optimizer.step()
        agree = start == w.grad.sign()
        assert torch.equal(w.detach(), torch.where(agree, -start, start) if flips else start)


def test_unbiased_is_biased_with_another_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """u_unbiased = u_biased sqrt(sigma) / gamma if e is scaled by sqrt(sigma) too."""
    tau, gamma, sigma = 0.7, 0.25, 2.0**-4
    random = torch.Generator().manual_seed(1)
    start = torch.randn(31, 9, generator=random, dtype=torch.float64).sign()
    steps = [torch.randn(31, 9, generator=random, dtype=torch.float64) for _ in range(30)]

    def run(variant: Variant, threshold: float) -> list[torch.Tensor]:
        w = nn.Parameter(start.clone())
        optimizer = Bop2Optimizer([w], threshold, gamma, sigma, variant)
        trajectory = []
        for g in steps:
            w.grad = g.clone()
            optimizer.step()
            trajectory.append(w.detach().clone())
        assert int(optimizer.flips[w]) > 100
        return trajectory

    unbiased = run("unbiased", tau)
    monkeypatch.setattr(bop2, "EPSILON", 1e-10 * math.sqrt(sigma))
    for a, b in zip(unbiased, run("biased", tau * gamma / math.sqrt(sigma)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigma": 0.0}, "sigma must be above 0 and at most 1"),
        ({"sigma_end": 2.0}, "sigma_end must be from 0 to 1"),
        ({"variant": "unbiased", "gamma_end": 0.0}, "gamma_end and sigma_end must be above 0"),
        ({"sigma_decay": 0.1}, "sigma_decay needs decay_epochs"),
        ({"threshold": 0.1, "gamma": 0.1, "sigma": 0.1, "decay_epochs": 3}, "threshold_end or gamma_end or sigma_end"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Bop2Options(**options)
