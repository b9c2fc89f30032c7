"""Mirror descent against a second implementation in NumPy float64."""

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
from bnnedge.methods.bmd import Bmd, BmdBinarizer, BmdOptions
from bnnedge.methods.method import PhaseSize
from bnnedge.train.start import start_run
from tests.methods.slow_dense import Adam, Array, TwoLayers, example, gradients, sgn
from tests.methods.test_registry import EPOCHS, NETWORKS, check_resume


def slow_betas(options: dict[str, Any], epochs: int, steps: int) -> list[float]:
    """beta in every step, by the growth that the two sources describe."""
    interval, betas, beta = options.get("beta_interval"), [], 1.0
    for iteration in range(epochs * steps):
        betas.append(beta)
        if interval is not None and iteration % interval == 0:
            beta = min(beta * options["beta_scale"], 1e35)
        elif interval is None and (iteration + 1) % steps == 0:
            beta = min(options["beta_scale"] ** (iteration // steps), 1e35)
    return betas


@pytest.mark.parametrize("variant", ["tanh", "softmax"])
@pytest.mark.parametrize(
    "options",
    [
        {"beta_scale": 2.0},
        {"beta_scale": 1.3, "beta_interval": 1, "a32": True},
        {"beta_scale": 1.7, "beta_interval": 4, "surrogate": "approx_sign"},
        {"beta_scale": 1e30, "freeze_epochs": 1},
    ],
    ids=str,
)
def test_trajectory(variant: Any, options: dict[str, Any]) -> None:
    method = Bmd(BmdOptions(variant=variant, **options))
    model = TwoLayers()
    method.attach(model)
    with torch.no_grad():
        model.first.weight[0, :2] = torch.tensor([0.0, -0.0])
    dual: dict[str, Array] = {n: layer.weight.detach().numpy().copy() for n, layer in binary_layers(model).items()}
    negative = {n: np.zeros_like(w) for n, w in dual.items()}
    method.start_phase(model, 0)
    epochs, steps = 5, 3
    assert method.make_optimizer(model, PhaseSize(epochs, steps, 18)) is None  # type: ignore[func-returns-value]
    optimizer, slow, slow_negative = torch.optim.Adam(model.parameters(), lr=0.1), Adam(0.1), Adam(0.1)
    x, target = example()
    surrogate = {"approx_sign": lambda v: np.maximum(2 - 2 * np.abs(v), 0)}.get(
        options.get("surrogate", ""), lambda v: (np.abs(v) <= 1).astype(float)
    )
    frozen = options.get("freeze_epochs", 0) * steps
    signs = {n: sgn(w) for n, w in dual.items()}
    for step, beta in enumerate(slow_betas(options, epochs, steps)):
        if step % steps == 0:
            method.start_epoch(model, step // steps, epochs)
        optimizer.zero_grad()
        images = torch.from_numpy(x).requires_grad_()  # so that there is a backward pass once all weights are frozen
        (model.train()(images) - torch.from_numpy(target)).square().mean().backward()
        method.before_step(model)
        optimizer.step()
        method.after_step(model)

        if step < epochs * steps - frozen:
            if variant == "tanh":
                primal = {n: np.tanh(beta * w) for n, w in dual.items()}
            else:
                primal = {n: softmax_difference(beta, dual[n], negative[n]) for n in dual}
            found = gradients(x, target, primal, None if options.get("a32") else surrogate)
            slow.step(dual, found)
            if variant == "softmax":
                slow_negative.step(negative, {n: -g for n, g in found.items()})
        for name, layer in binary_layers(model).items():
            np.testing.assert_allclose(layer.weight.detach().numpy(), dual[name], rtol=0, atol=1e-10)
            if variant == "softmax":
                binarizer = layer.binarizer
                assert isinstance(binarizer, BmdBinarizer) and binarizer.negative is not None
                np.testing.assert_allclose(binarizer.negative.detach().numpy(), negative[name], rtol=0, atol=1e-10)
    model.eval()
    final = {n: sgn(w - negative[n]) for n, w in dual.items()}
    for name, layer in binary_layers(model).items():
        np.testing.assert_array_equal(layer.binarizer.binarize_weight(layer.weight).detach().numpy(), final[name])
    assert any((signs[n] != final[n]).any() for n in final)


def softmax_difference(beta: float, plus: Array, minus: Array) -> Array:
    """``p+ - p-``, the softmax computed as such."""
    logits = beta * np.stack([plus, minus])
    powers = np.exp(logits - logits.max(0))
    powers /= powers.sum(0)
    difference: Array = powers[0] - powers[1]
    return difference


def test_a_step_is_the_exact_mirror_step() -> None:
    """``u <- tanh(atanh(u) - beta eta g)``, the closed form of MD-tanh."""
    method = Bmd(BmdOptions(beta_scale=3.0))
    model = nn.Sequential(BinaryLinear(5, 3)).double()
    method.attach(model)
    layer = binary_layers(model)["0"]
    method.start_epoch(model, 2, 9)
    optimizer = torch.optim.SGD([layer.weight], lr=0.2)
    before = layer.binarizer.binarize_weight(layer.weight).detach()
    model.train()(torch.randn(4, 5).double()).square().sum().mul(1e-3).backward()
    optimizer.step()
    assert layer.weight.grad is not None and float(layer.weight.grad.abs().max()) > 1e-3
    mirror = torch.tanh(torch.atanh(before) - 3.0 * 0.2 * layer.weight.grad)
    torch.testing.assert_close(layer.binarizer.binarize_weight(layer.weight).detach(), mirror, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "epochs", "expected"),
    [
        ({"beta_scale": 2.0}, 5, {0: 1, 1: 1, 2: 2, 3: 4, 4: 8}),
        ({"beta_scale": 1e20}, 5, {0: 1, 1: 1, 2: 1e20, 3: 1e35, 4: 1e35}),
        ({"beta_scale": 2.0, "beta_interval": 15}, 5, {0: 1, 1: 2, 2: 4, 3: 4, 4: 8}),  # 10 steps an epoch
        ({}, 6, {0: 1, 1: 1, 2: 10, 3: 100, 4: 1000, 5: 1e4}),
        ({"freeze_epochs": 2, "beta_end": 100.0}, 6, {2: 10, 3: 100}),
        ({}, 2, {0: 1, 1: 1}),
        ({"beta_end": 81.0, "beta_interval": 8}, 3, {0: 1, 1: 9, 2: 27}),  # 30 steps: factors before 1, 9, 17, 25
        ({"beta_end": 81.0, "beta_interval": 29}, 3, {0: 1, 1: 81, 2: 81}),
    ],
    ids=str,
)
def test_beta_at_the_start_of_epochs(options: dict[str, Any], epochs: int, expected: dict[int, float]) -> None:
    method = Bmd(BmdOptions(**options))
    model = nn.Sequential(BinaryLinear(2, 2))
    method.attach(model)
    method.make_optimizer(model, PhaseSize(epochs, 10, 100))
    for epoch, beta in expected.items():
        method.start_epoch(model, epoch, epochs)
        assert math.isclose(model[0].binarizer.beta, beta, rel_tol=1e-12)  # type: ignore[union-attr, arg-type]
    for _ in range(9):
        method.after_step(model)  # so the last step of the run is next
    if "beta_end" in options and "freeze_epochs" not in options:
        assert math.isclose(model[0].binarizer.beta, 81, rel_tol=1e-12)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("variant", ["tanh", "softmax"])
def test_frozen_weights_stay_bit_identical(variant: Any) -> None:
    method = Bmd(BmdOptions(variant=variant, freeze_epochs=1))
    model = nn.Sequential(BinaryLinear(33, 31), nn.BatchNorm1d(31))
    method.attach(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    method.make_optimizer(model, PhaseSize(2, 5, 100))
    for epoch in (0, 1):
        method.start_epoch(model, epoch, 2)
        held = {name: p.detach().clone() for name, p in model.named_parameters()}
        for _ in range(5):
            optimizer.zero_grad(set_to_none=False)  # a zero gradient would let Adam's momentum go on
            model.train()(torch.randn(8, 33)).square().sum().backward()
            optimizer.step()
            method.after_step(model)
    layer = binary_layers(model)["0"]
    for name, p in model.named_parameters():
        assert torch.equal(p, held[name]) == ("1." not in name), name
    seen = layer.binarizer.binarize_weight(layer.weight)
    assert set(seen.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(seen, model.eval()[0].binarizer.binarize_weight(layer.weight))  # type: ignore[operator, union-attr]
    assert method.layer_metrics(layer)["distance_to_binary"] == 0


@pytest.mark.parametrize("variant", ["tanh", "softmax"])
def test_distance_is_that_of_the_weight_in_training(variant: Any) -> None:
    method = Bmd(BmdOptions(variant=variant, beta_scale=3.0))
    model = nn.Sequential(BinaryLinear(2, 1)).double()
    method.attach(model)
    layer = binary_layers(model)["0"]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -0.1]], dtype=torch.float64))
    method.start_epoch(model, 2, 9)
    slope = 3.0 if variant == "tanh" else 1.5
    expected = 1 - (math.tanh(slope * 0.5) + math.tanh(slope * 0.1)) / 2
    found = method.layer_metrics(layer)
    assert found["distance_to_binary"] == pytest.approx(expected, rel=1e-12)
    assert found["latent_magnitude"] == pytest.approx(0.3, rel=1e-12)


def test_a_loop_that_counts_steps_must_make_the_plan_known() -> None:
    with pytest.raises(ConfigError, match=r"call make_optimizer\(model, size\) first"):
        Bmd(BmdOptions(beta_interval=3)).start_epoch(nn.Sequential(BinaryLinear(2, 2)), 0, 1)


def test_ties_and_extremes_stay_finite() -> None:
    method = Bmd(BmdOptions(beta_scale=1e35))
    model = nn.Sequential(BinaryLinear(4, 1))
    method.attach(model)
    layer = binary_layers(model)["0"]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, -0.0, 1e6, -1e-3]]))
    method.start_epoch(model, 5, 9)
    assert layer.binarizer.train().binarize_weight(layer.weight).tolist() == [[0.0, 0.0, 1.0, -1.0]]
    assert layer.binarizer.eval().binarize_weight(layer.weight).tolist() == [[1.0, 1.0, 1.0, -1.0]]


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "softmax", "beta_interval": 3, "beta_scale": 1.1},
        {"freeze_epochs": 1},
        {"freeze_epochs": 3, "beta_scale": 2.0},
    ],
    ids=str,
)
def test_resume_is_exact(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "networks.py").write_text(NETWORKS)
    config = RunConfig(
        method="bmd",
        model=f"{tmp_path / 'networks.py'}:mlp",
        image_size=(8,),
        epochs=EPOCHS,
        device="cpu",
        threads=1,
        method_options=options,
    )
    start_run(config, tmp_path / "whole")
    check_resume(config, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beta_scale": 0.9}, "beta_scale must be at least 1"),
        ({"beta_end": 0.0}, "beta_end must be at least 1"),
        ({"beta_scale": 1.1, "beta_end": 9.0}, "not both"),
        ({"beta_interval": 0}, "beta_interval must be at least 1 step"),
        ({"freeze_epochs": -1}, "freeze_epochs must be at least 0"),
        ({"freeze_epochs": 4}, r"freeze_epochs \(4\) must be below epochs \(4\)"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Bmd(BmdOptions(**options)).phases(4)
