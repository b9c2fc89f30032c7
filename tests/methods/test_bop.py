"""Bop against a second implementation that goes weight by weight in Python floats."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnnedge.config import RunConfig
from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryLinear, binary_layers
from bnnedge.methods.bop import Bop, BopOptimizer, BopOptions
from bnnedge.methods.bop2 import Bop2Options
from bnnedge.methods.method import PhaseSize
from bnnedge.train.start import start_run
from tests.methods.slow_dense import Array, TwoLayers, example, gradients, sgn
from tests.methods.test_registry import EPOCHS, NETWORKS, check_resume


def slow_step(w: Array, m: Array, g: Array, tau: float, gamma: float) -> int:
    """Algorithm 1 of the paper, in place; returns the number of flips."""
    flips = 0
    for index in np.ndindex(*w.shape):
        m[index] = (1 - gamma) * m[index] + gamma * g[index]
        if abs(m[index]) > tau and np.sign(m[index]) == np.sign(w[index]):
            w[index] = -w[index]
            flips += 1
    return flips


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.05, "gamma": 0.3},
        {"threshold": 0.0, "gamma": 1.0, "surrogate": "approx_sign"},
        {"threshold": 0.1, "threshold_decay": 0.5, "gamma": 0.5, "gamma_decay": 0.8, "decay_epochs": 2, "a32": True},
        {"threshold": 0.0, "threshold_end": 0.2, "gamma": 0.9, "gamma_end": 0.1, "decay_power": 2.0},
        {"threshold": 0.2, "threshold_decay": 0.3, "gamma": 0.6, "gamma_end": 0.2, "decay_epochs": 1},
    ],
    ids=str,
)
def test_trajectory(options: dict[str, Any]) -> None:
    method = Bop(BopOptions(**options))
    model = TwoLayers()
    method.attach(model)
    with torch.no_grad():
        model.first.weight[0, :2] = torch.tensor([0.0, -0.0])
    w: dict[str, Array] = {n: sgn(layer.weight.detach().numpy()) for n, layer in binary_layers(model).items()}
    m = {n: np.zeros_like(v) for n, v in w.items()}
    method.start_phase(model, 0)
    size = PhaseSize(epochs=4, steps_per_epoch=3, train_images=18)
    optimizer = method.make_optimizer(model, size)
    x, target = example()
    surrogate = {"approx_sign": lambda v: np.maximum(2 - 2 * np.abs(v), 0)}.get(
        options.get("surrogate", ""), lambda v: (np.abs(v) <= 1).astype(float)
    )
    whole = 0
    for step in range(12):
        if step % 3 == 0:
            method.start_epoch(model, step // 3, 4)
            flips = dict.fromkeys(w, 0)
        optimizer.zero_grad()
        (model.train()(torch.from_numpy(x)) - torch.from_numpy(target)).square().mean().backward()
        method.before_step(model)
        optimizer.step()
        method.after_step(model)

        values = {}
        for name in ("threshold", "gamma"):
            start, length = options[name], 3 * options.get("decay_epochs", 4)
            if f"{name}_decay" in options:
                start *= options[f"{name}_decay"] ** (step // length)
            if f"{name}_end" in options:
                left = max(length - step, 0) / length
                end = options[f"{name}_end"]
                start = end + (start - end) * left ** options.get("decay_power", 1)
            values[name] = start
        found = gradients(x, target, w, None if options.get("a32") else surrogate)
        for name, layer in binary_layers(model).items():
            flips[name] += slow_step(w[name], m[name], found[name], values["threshold"], values["gamma"])
            np.testing.assert_array_equal(layer.weight.detach().numpy(), w[name])
            np.testing.assert_allclose(optimizer.state[layer.weight]["m"].numpy(), m[name], rtol=0, atol=1e-12)
            assert method.layer_metrics(layer)["flips"] == flips[name]
        whole += sum(flips.values())
    assert whole > 0


def test_ties_zeros_and_groups() -> None:
    """All values are exact in binary floating point, and two groups have values of their own."""
    tau = 0.25
    above, below = math.nextafter(tau, 1), math.nextafter(tau, 0)
    weights = [1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0]
    average = [tau, above, below, -tau, -above, -below, 0.0, -above, 0.0, above]
    expected = [1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -1.0, -1.0]
    first = nn.Parameter(torch.tensor(weights, dtype=torch.float64))
    second = nn.Parameter(torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0, -0.0, 0.03, -0.03, 0.03], dtype=torch.float64))
    idle = nn.Parameter(torch.ones(3))
    groups: list[dict[str, Any]] = [{"params": [first, idle]}, {"params": [second], "threshold": 0.0, "gamma": 0.5}]
    optimizer = BopOptimizer(groups, threshold=tau, gamma=1.0)
    first.grad = torch.tensor(average, dtype=torch.float64)
    second.grad = torch.tensor([0.0, -0.0, 2.0, -2.0, 1.0, 1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    optimizer.step()
    assert first.tolist() == expected
    assert second.tolist() == [1.0, -1.0, -1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0]
    assert optimizer.state[second]["m"].tolist() == [0.0, 0.0, 1.0, -1.0, 0.5, 0.5, 0.5, 0.5, -0.5]
    assert idle.tolist() == [1, 1, 1] and idle not in optimizer.state, "a weight without a gradient is let alone"
    assert [group["step"] for group in optimizer.param_groups] == [1, 1]
    assert (int(optimizer.flips[first]), int(optimizer.flips[second])) == (2, 3)


def test_agrees_with_the_published_code_s_formula() -> None:
    """``w <- sign(-sign(w m - tau) w)`` from float initial weights on, in float32; no ties among random numbers."""
    random = torch.Generator().manual_seed(3)
    w = nn.Parameter(torch.randn(33, 7, generator=random) * 0.1)
    optimizer = BopOptimizer([w], threshold=1e-3, gamma=0.05)
    slow, m = w.detach().clone(), torch.zeros(33, 7)
    for _ in range(40):
        w.grad = torch.randn(33, 7, generator=random) * 0.1
        m = m + 0.05 * (w.grad - m)
        inner = -torch.sign(torch.sign(slow * m - 1e-3) * slow)
        slow = torch.sign(torch.sign(inner) + 0.1)
        optimizer.step()
        # float32 rounding of m may differ by an ulp between the two orders of operations.
        torch.testing.assert_close(optimizer.state[w]["m"], m, rtol=1e-5, atol=1e-8)
        assert torch.equal(w.detach(), slow)
    assert int(optimizer.flips[w]) > 100


def test_the_weights_have_no_copy() -> None:
    """Training convolves with the parameter itself, and autograd saves that; the optimizer holds m and nothing more."""
    model = nn.Sequential(BinaryLinear(33, 5))
    layer = model[0]
    assert isinstance(layer, BinaryLinear)
    method = Bop(BopOptions())
    method.attach(model)
    method.start_phase(model, 0)
    optimizer = method.make_optimizer(model, PhaseSize(1, 1, 1))
    assert optimizer is method.optimizer
    saved: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = model.train()(torch.randn(2, 33, requires_grad=True))
    sizes = [t.numel() for t in saved if t.untyped_storage().data_ptr() == layer.weight.untyped_storage().data_ptr()]
    assert sizes == [165]
    assert [t.numel() for t in saved].count(165) == 1
    y.sum().backward()
    optimizer.step()
    assert list(optimizer.state) == [layer.weight]
    assert {name: v.shape for name, v in optimizer.state[layer.weight].items()} == {"m": (5, 33)}
    assert set(layer.weight.unique().tolist()) == {-1.0, 1.0}
    assert optimizer.state_dict()["param_groups"] == [{"threshold": 1e-8, "gamma": 1e-4, "step": 1, "params": [0]}]


@pytest.mark.parametrize("method", ["bop", "bop2"])
def test_schedules_resume_exactly(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "networks.py").write_text(NETWORKS)
    options: dict[str, Any] = {"gamma": 0.1, "gamma_decay": 0.5, "threshold": 1e-3, "threshold_end": 1e-5}
    config = RunConfig(
        method=method,
        model=f"{tmp_path / 'networks.py'}:mlp",
        image_size=(8,),
        epochs=EPOCHS,
        device="cpu",
        threads=1,
        method_options={**options, "decay_epochs": 1},
    )
    start_run(config, tmp_path / "whole")
    check_resume(config, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": -1e-9}, "threshold must be at least 0"),
        ({"threshold_end": -1e-9}, "threshold_end must be at least 0"),
        ({"gamma": 0.0}, "gamma must be above 0 and at most 1"),
        ({"gamma": 1.5}, "gamma must be above 0 and at most 1"),
        ({"gamma_end": -1e-9}, "gamma_end must be from 0 to 1"),
        ({"gamma_decay": 0.0, "decay_epochs": 1}, "gamma_decay must be above 0"),
        ({"gamma_decay": 0.1}, "gamma_decay needs decay_epochs"),
        ({"gamma_decay": 0.1, "gamma_end": 1e-5, "decay_epochs": 1}, "not both"),
        ({"decay_epochs": 0, "gamma_end": 1e-5}, "decay_epochs must be at least 1"),
        ({"gamma": 1e-4, "decay_epochs": 5}, "decay_epochs belongs to threshold_end or gamma_end"),
        ({"decay_power": 2.0, "gamma_decay": 0.1, "decay_epochs": 1}, "decay_power belongs to"),
        ({"decay_power": 0.0}, "decay_power must be above 0"),
        ({"surrogate": "identity", "activation_clip": 2.0}, "identity has no clip"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BopOptions(**options)


def test_published_values_stand_where_the_user_says_nothing() -> None:
    def values(**options: Any) -> list[float | None]:
        chosen = BopOptions(**options)
        return [chosen.threshold, chosen.threshold_end, chosen.gamma, chosen.gamma_decay, chosen.gamma_end]

    assert values() == [1e-8, None, 1e-4, None, 1e-6]
    assert values(gamma=1e-3) == [1e-8, None, 1e-3, None, None], "what the user gives is constant"
    assert values(gamma_end=1e-5) == [1e-8, None, 1e-4, None, 1e-5]
    assert values(gamma_decay=0.1, decay_epochs=2) == [1e-8, None, 1e-4, 0.1, None]
    published = {"threshold": 1e-5, "gamma": 1e-2, "sigma": 1e-7, "threshold_end": 1e-8, "gamma_end": 1e-5}
    assert vars(Bop2Options()).items() >= {**published, "sigma_end": 1e-2, "variant": "biased"}.items()
    chosen = Bop2Options(sigma=1e-3, threshold_end=1e-7)
    assert [chosen.threshold, chosen.gamma, chosen.gamma_end, chosen.sigma] == [1e-5, 1e-2, 1e-5, 1e-3]
    assert (chosen.threshold_end, chosen.sigma_end) == (1e-7, None)


def test_a_loop_without_the_method_s_optimizer_is_told() -> None:
    method = Bop(BopOptions())
    with pytest.raises(ConfigError, match=r"call make_optimizer\(model, size\) first"):
        method.before_step(nn.Sequential(BinaryLinear(3, 2)))
