"""XNOR-Net against a second implementation in NumPy float64 and plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bnnedge
from bnnedge.errors import ConfigError
from bnnedge.export.targets import TARGETS
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear, binary_layers
from bnnedge.layers.deploy import deploy
from bnnedge.methods.xnor import Xnor, XnorOptions
from tests.methods.slow_dense import Adam, Array, TwoLayers, example, gradients, sgn


@pytest.mark.parametrize("rule", ["paper", "straight_through"])
@pytest.mark.parametrize("a32", [False, True])
def test_trajectory(rule: Any, a32: bool) -> None:
    method = Xnor(XnorOptions(weight_gradient=rule, a32=a32))
    model = TwoLayers()
    method.attach(model)
    with torch.no_grad():
        model.first.weight.mul_(3)
        model.first.weight[0, :2] = torch.tensor([0.0, -0.0])
    latent: dict[str, Array] = {n: layer.weight.detach().numpy().copy() for n, layer in binary_layers(model).items()}
    x, target = example()
    optimizer, slow = torch.optim.Adam(model.parameters(), lr=0.1), Adam(0.1)
    start = {n: sgn(w) for n, w in latent.items()}
    for _ in range(6):
        optimizer.zero_grad()
        (model(torch.from_numpy(x)) - torch.from_numpy(target)).square().mean().backward()
        method.before_step(model)
        optimizer.step()
        method.after_step(model)

        alpha = {n: np.abs(w).mean(1, keepdims=True) for n, w in latent.items()}
        hardtanh = None if a32 else (lambda v: (np.abs(v) <= 1).astype(float))
        found = gradients(x, target, {n: alpha[n] * sgn(w) for n, w in latent.items()}, hardtanh)
        for name, w in latent.items():
            inside = (np.abs(w) <= 1).astype(float)
            found[name] = found[name] * (
                inside if rule == "straight_through" else 1 / w.shape[1] + alpha[name] * inside
            )
        slow.step(latent, found)
        latent = {n: np.clip(w, -1, 1) for n, w in latent.items()}
        for name, layer in binary_layers(model).items():
            np.testing.assert_allclose(layer.weight.detach().numpy(), latent[name], rtol=0, atol=1e-12)
    assert any((start[n] != sgn(w)).any() for n, w in latent.items())


def test_pixel_scale_by_loops() -> None:
    layer = BinaryConv2d(3, 2, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=True).double()
    model = nn.Sequential(layer)
    Xnor(XnorOptions(pixel_scale=True)).attach(model)
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    x[0, :, 2, 3] = 0.0
    w = layer.weight.detach().numpy()
    assert layer.bias is not None
    bias = layer.bias.tolist()
    for training in (True, False):
        y = model.train(training)(x).detach()
        for n, o, row, column in np.ndindex(*y.shape):
            total, magnitude = 0.0, 0.0
            for c, i, j in np.ndindex(3, 3, 2):
                r, s = 2 * row + i - 1, column + 2 * j
                if 0 <= r < 6:
                    value = float(x[n, c, r, s])
                    total += (-1 if value < 0 else 1) * (-1 if w[o, c, i, j] < 0 else 1)
                    magnitude += abs(value) / (3 * 3 * 2)
            expected = total * np.abs(w[o]).mean() * magnitude + bias[o]
            assert float(y[n, o, row, column]) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_dense_pixel_scale_is_the_mean_magnitude() -> None:
    model = nn.Sequential(BinaryLinear(5, 4)).eval()
    Xnor(XnorOptions(pixel_scale=True)).attach(model)
    model.eval()
    x = torch.randn(3, 5)
    plain = nn.Sequential(BinaryLinear(5, 4))
    plain.load_state_dict(model.state_dict())
    Xnor(XnorOptions()).attach(plain)
    assert torch.equal(model(x), plain.eval()(x) * x.abs().mean(1, keepdim=True))


@pytest.mark.parametrize("target", TARGETS)
def test_pixel_scale_is_exported(target: str, tmp_path: Any) -> None:
    net = nn.Sequential(
        *(nn.Conv2d(1, 33, 3, padding=1), nn.BatchNorm2d(33)),
        *(nn.Conv2d(33, 40, 3, 2, 1), nn.BatchNorm2d(40), nn.Hardtanh()),
        *(nn.Conv2d(40, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)),
        *(nn.Flatten(), nn.Linear(32 * 16, 9), nn.BatchNorm1d(9), nn.Linear(9, 4)),
    )
    model = bnnedge.binarize(net, "xnor", pixel_scale=True)
    for _ in range(3):
        model.train()(torch.randn(32, 1, 8, 8))
    model.eval()
    x = torch.randn(4, 1, 8, 8)
    # The same operations in the same order: sums of -1 and +1 are exact, and the root of a square is exactly abs(x).
    assert torch.equal(deploy(model)(x), model(x))
    report = bnnedge.export(model, x[:1], tmp_path / f"net{TARGETS.load(target).suffix}", target=target)
    if report.verification is None:
        pytest.skip(report.not_verified)
    assert report.verification.binary_layers == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [({"weight_clip": -1.0}, "weight_clip"), ({"pixel_scale": True, "a32": True}, "leave it out with a32")],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        XnorOptions(**options)
