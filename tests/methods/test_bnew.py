"""BNEW's phases against a second implementation in NumPy float64; freezing, schedule and resume of frozen weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear, binary_layers
from bnnedge.methods.bnew import Bnew, BnewOptions, rho_of_epoch
from bnnedge.methods.method import PhaseSize
from tests.methods.slow_dense import Adam, Array, TwoLayers, example, gradients, sgn


def approx(v: Array) -> Array:
    return np.asarray(np.maximum(2 - 2 * np.abs(v), 0))


def slow_cosine(w: Array, rho: float) -> Array:
    """Central differences of the similarity itself; their error is of the order 1e-10."""
    result = w.copy()
    for o, i in np.ndindex(*w.shape):
        values = []
        for shift in (1e-6, -1e-6):
            row = w[o].copy()
            row[i] += shift
            values.append(float(row @ sgn(w[o]) / np.linalg.norm(row) / np.sqrt(len(row))))
        result[o, i] += rho * (values[0] - values[1]) / 2e-6
    return result


def slow_scaled(w: Array, rho: float) -> Array:
    d: Array = w - np.abs(w).mean(1, keepdims=True) * sgn(w)
    moved: Array = w - np.sign(d) * np.minimum(np.abs(d), rho)
    return moved


SLOW: dict[str, Callable[[Array, float], Array]] = {
    "concave": lambda w, rho: w + 2 * rho * w,
    "quartic": lambda w, rho: w + 4 * rho * w**3,
    "l1": lambda w, rho: w + rho * sgn(w),
    "l2": lambda w, rho: (w + rho * sgn(w)) / (1 + rho),
    "scaled": slow_scaled,
    "cosine": slow_cosine,
}


@pytest.mark.parametrize(
    ("regularizer", "placement", "a32"),
    [*itertools.product(SLOW, ["after_step"], [False]), ("concave", "before_step", False), ("l1", "after_step", True)],
)
def test_trajectory_through_all_phases(regularizer: str, placement: str, a32: bool) -> None:
    rho = 0.3
    method = Bnew(BnewOptions(regularizer=regularizer, placement=placement, a32=a32, rho=rho))  # type: ignore[arg-type]
    model = TwoLayers()
    method.attach(model)
    with torch.no_grad():
        for layer in binary_layers(model).values():
            layer.weight.mul_(2.0)  # some near the clamp
            layer.weight[0, :2] = torch.tensor([0.0, -0.0])
    layers = binary_layers(model)
    w: dict[str, Array] = {n: layer.weight.detach().numpy().copy() for n, layer in layers.items()}
    x, target = example()
    clamped = 0
    for index, epochs in enumerate((2, 4, 2)):
        method.start_phase(model, index)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer, slow = torch.optim.Adam(trainable, lr=0.1) if trainable else None, Adam(0.1)
        method.make_optimizer(model, PhaseSize(epochs, 2, 12))
        for epoch in range(epochs):
            method.start_epoch(model, epoch, epochs)
            for _ in range(2):
                model.train().zero_grad()
                output = model(torch.from_numpy(x))
                if optimizer is not None:
                    (output - torch.from_numpy(target)).square().mean().backward()
                method.before_step(model)
                if optimizer is not None:
                    optimizer.step()
                method.after_step(model)

                strength = min(rho * max(epoch, 1) / epochs, 1)

                def regularized(v: Array, phase: int = index, strength: float = strength) -> Array:
                    return np.clip(SLOW[regularizer](v, strength) if phase == 1 else v, -1, 1)

                if index == 2:
                    continue
                g = gradients(x, target, w, None if a32 else approx)
                if placement == "before_step":
                    w = {n: regularized(v) for n, v in w.items()}
                slow.step(w, g)
                if placement == "after_step":
                    w = {n: regularized(v) for n, v in w.items()}
                clamped += sum(int((np.abs(v) == 1).sum()) for v in w.values())
                for n, layer in layers.items():
                    # cosine: the differences' error times rho, and what Adam makes of it in eight steps
                    atol = 1e-6 if regularizer == "cosine" else 1e-12
                    np.testing.assert_allclose(layer.weight.detach().numpy(), w[n], rtol=0, atol=atol)
    assert clamped > 0
    alpha = {n: np.abs(v).mean(1, keepdims=True) if regularizer == "scaled" else 1.0 for n, v in w.items()}
    model.eval()
    for n, layer in layers.items():
        np.testing.assert_allclose(layer.weight.detach().numpy(), alpha[n] * sgn(w[n]), rtol=1e-12)
        assert torch.equal(layer.binarizer.binarize_weight(layer.weight), torch.from_numpy(sgn(w[n])))
        scale = layer.binarizer.output_scale(layer.weight)
        assert (scale is None) == (regularizer != "scaled")
        if scale is not None:
            assert torch.equal(scale, layer.weight.abs()[:, 0])


def test_the_schedule_of_rho() -> None:
    """The first two of E = 10 epochs share a value; rho_0 is 1e-3."""
    expected = [1e-4, 1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4, 7e-4, 8e-4, 9e-4]
    np.testing.assert_allclose([rho_of_epoch(e, 10, 1e-3) for e in range(10)], expected, rtol=1e-15)
    assert rho_of_epoch(9, 10, 5.0) == 1.0


def test_rho_left_out_is_the_published_one_at_the_published_length() -> None:
    method = Bnew(BnewOptions(phases=(2,)))
    layer = BinaryLinear(3, 2)
    model = nn.Sequential(layer)
    method.attach(model)
    method.start_phase(model, 0)
    method.make_optimizer(model, PhaseSize(epochs=1000, steps_per_epoch=352, train_images=45_000))
    method.start_epoch(model, 500, 1000)
    model.double()
    with torch.no_grad():
        layer.weight.fill_(0.5)
    method.after_step(model)
    assert layer.weight.tolist() == [[pytest.approx(0.5 * (1 + 2 * 5e-5), rel=1e-14)] * 3] * 2


@pytest.mark.parametrize("freeze_at", ["sign", "scaled_sign"])
def test_frozen_weights_never_move(freeze_at: Any) -> None:
    """Adam takes a hundred steps with momentum and gradients from before the freezing, then again as after a resume."""
    method = Bnew(BnewOptions(phases=(2,), freeze_epochs=1, freeze_at=freeze_at, rho=1e-3))
    layer, norm = BinaryConv2d(3, 33, 3), nn.BatchNorm2d(33)
    model = nn.Sequential(layer, norm)
    method.attach(model)
    method.start_phase(model, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=0.1)
    weight = layer.weight
    for epoch in range(2):
        method.start_epoch(model.train(), epoch, 2)
        frozen = weight.detach().clone()
        gain = norm.weight.detach().clone()
        for _ in range(50):
            optimizer.zero_grad(set_to_none=False)  # a zero gradient would let Adam's momentum go on
            model(torch.randn(4, 3, 5, 5)).square().mean().backward()
            method.before_step(model)
            optimizer.step()
            method.after_step(model)
        assert torch.equal(weight, frozen) == (epoch == 1)
        assert not torch.equal(norm.weight, gain)
    magnitudes = weight.detach().abs().flatten(1)
    assert torch.equal(magnitudes, magnitudes[:, :1].expand_as(magnitudes))
    assert bool((magnitudes == 1).all()) == (freeze_at == "sign")
    weight.requires_grad_(True)
    method.start_epoch(model, 1, 2)
    assert torch.equal(weight, frozen) and not weight.requires_grad


@pytest.mark.parametrize(
    ("options", "epochs", "expected"),
    [
        ({}, 729, [("float weights", 128), ("regularized weights", 401), ("frozen weights", 200)]),
        ({"phases": (1, 2), "phase_epochs": (2, 10)}, 12, [("float weights", 2), ("regularized weights", 10)]),
        ({"phases": (3,)}, 5, [("frozen weights", 5)]),
    ],
)
def test_phases(options: dict[str, Any], epochs: int, expected: list[tuple[str, int]]) -> None:
    phases = Bnew(BnewOptions(**options)).phases(epochs)
    assert [(phase.name, phase.epochs) for phase in phases] == expected


def test_epochs_frozen_by_default() -> None:
    """As published, weights freeze at the end of epoch 980 of 1000, counted from 0; 981 to 999 are trained frozen."""
    assert Bnew(BnewOptions(phases=(1, 2))).frozen_epochs(1000) == 19
    assert [Bnew(BnewOptions(phases=(2,))).frozen_epochs(epochs) for epochs in (1, 2, 3, 105, 106)] == [0, 1, 1, 1, 2]
    assert Bnew(BnewOptions()).frozen_epochs(1000) == 0
    with pytest.raises(ConfigError, match=r"freeze_epochs \(4\) is more than phase 2 has \(3\)"):
        Bnew(BnewOptions(phases=(2,), freeze_epochs=4)).phases(3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"phases": (2, 1)}, "phases must be some of 1,2,3, in this order"),
        ({"regularizer": "l3"}, "regularizer must be one of concave, quartic"),
        ({"rho": 0.0}, "rho must be above 0"),
        ({"freeze_epochs": -1}, "freeze_epochs must be at least 0"),
        ({"placement": "never"}, "placement must be one of after_step, before_step"),
        ({"freeze_at": "zero"}, "freeze_at must be one of sign, scaled_sign"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BnewOptions(**options)
