"""ReActNet's two steps against a second implementation in NumPy float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnnedge.config import RunConfig
from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryConv2d, binary_layers
from bnnedge.methods.reactnet import Reactnet, ReactnetOptions
from bnnedge.train.assign import make_optimizers
from tests.methods.slow_dense import Adam, Array, TwoLayers, example, gradients, sgn


def approx(v: Array) -> Array:
    return np.asarray(np.maximum(2 - 2 * np.abs(v), 0))


def test_trajectory_through_both_steps() -> None:
    method = Reactnet(ReactnetOptions())
    model = TwoLayers()
    method.attach(model)
    weights: dict[str, Array] = {n: layer.weight.detach().numpy().copy() for n, layer in binary_layers(model).items()}
    x, target = example()
    x = x / 4  # within the support of the surrogate
    start = {n: w.copy() for n, w in weights.items()}
    for phase in (0, 1):
        method.start_phase(model, phase)
        optimizer, slow = torch.optim.Adam(model.parameters(), lr=0.3), Adam(0.3)
        for _ in range(5):
            optimizer.zero_grad()
            (model.train()(torch.from_numpy(x)) - torch.from_numpy(target)).square().mean().backward()
            optimizer.step()
            scaled = {n: np.abs(w).mean(1, keepdims=True) * sgn(w) for n, w in weights.items()}
            step = gradients(x, target, scaled if phase else weights, approx)
            if phase:
                step = {n: g * (np.abs(weights[n]) <= 1) for n, g in step.items()}
            slow.step(weights, step)
            for name, layer in binary_layers(model).items():
                np.testing.assert_allclose(layer.weight.detach().numpy(), weights[name], rtol=0, atol=1e-12)
        assert any((np.abs(w) > 1).any() for w in weights.values()), "the clip is tried"
    assert any((sgn(start[n]) != sgn(w)).any() for n, w in weights.items())
    scales = {n: np.abs(w).mean(1) for n, w in weights.items()}
    model.eval()
    for name, layer in binary_layers(model).items():
        assert torch.equal(layer.binarizer.binarize_weight(layer.weight), torch.from_numpy(sgn(weights[name])))
        scale = layer.binarizer.output_scale(layer.weight)
        assert scale is not None
        np.testing.assert_allclose(scale.numpy(), scales[name], rtol=1e-12)


def test_weight_decay_is_step_1_s_and_only_for_convolutions() -> None:
    method = Reactnet(ReactnetOptions())
    model = nn.Sequential(BinaryConv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    method.attach(model)
    config = RunConfig(lr=0.1, optimizer="adam", weight_decay=1e-5)
    decays = []
    for phase in method.phases(7):
        optimizer = make_optimizers(config, model, method, phase, 1, 1)["run"]
        decays.append([(g["weight_decay"], sorted(p.dim() for p in g["params"])) for g in optimizer.param_groups])
    assert decays == [[(1e-5, [4]), (0.0, [1, 1, 1, 2])], [(0.0, [4]), (0.0, [1, 1, 1, 2])]]
    bias = nn.Parameter(torch.zeros(3))
    assert method.decays("layer1.0.conv2.bias", bias) and not method.decays("layer1.0.bn2.bias", bias)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [("binary activations", 4), ("binary weights", 4)]),
        ({"phase_epochs": (1, 7)}, [("binary activations", 1), ("binary weights", 7)]),
        ({"phases": (2,)}, [("binary weights", 8)]),
    ],
)
def test_phases(options: dict[str, Any], expected: list[tuple[str, int]]) -> None:
    phases = Reactnet(ReactnetOptions(**options)).phases(8)
    assert [(phase.name, phase.epochs) for phase in phases] == expected


@pytest.mark.parametrize("phases", [(), (2, 1), (1, 1), (0,), (3,)])
def test_bad_phases(phases: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="phases must be some of 1,2, in this order"):
        ReactnetOptions(phases=phases)
