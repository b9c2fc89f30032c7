"""STE against a second implementation in plain Python and NumPy float64."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnnedge.binarization.sign import sign
from bnnedge.errors import BnnedgeError
from bnnedge.layers.binary_layers import BinaryConv2d, binary_layers
from bnnedge.methods.ste import Ste, SteOptions
from tests.methods.slow_dense import Adam, Array, TwoLayers, example, gradients, sgn

MULTIPLIERS: dict[str, Any] = {
    "identity": lambda v: np.ones_like(v),
    "clipped_identity": lambda v: (np.abs(v) <= 1).astype(float),
    "approx_sign": lambda v: np.maximum(2 - 2 * np.abs(v), 0),
    "swish_sign": lambda v: 5 * (2 - 5 * v * np.tanh(2.5 * v)) / (1 + np.cosh(5 * v)),
    "tanh": lambda v: 1 / np.cosh(v) ** 2,
}


@pytest.mark.parametrize(
    "options",
    [
        *({"surrogate": name, "weight_surrogate": name} for name in MULTIPLIERS),
        {"gradient_clip": 0.01},
        {"weight_clip": 0.3},
        {"weight_clip": 0.0, "activation_clip": 3.0},
        {"surrogate": "swish_sign", "surrogate_slope": 2.0, "weight_surrogate": "identity"},
        {"surrogate": "tanh", "surrogate_slope": 3.0},
        {"a32": True},
        {"weight_surrogate": "magnitude_aware"},
        {"weight_surrogate": "magnitude_aware", "a32": True, "gradient_clip": 0.1},
    ],
    ids=str,
)
def test_trajectory(options: dict[str, Any]) -> None:
    method = Ste(SteOptions(**options))
    model = TwoLayers()
    method.attach(model)
    chosen = method.options
    with torch.no_grad():
        for layer in binary_layers(model).values():
            layer.weight.mul_(2.5)  # some beyond the clip
            layer.weight[0, :2] = torch.tensor([0.0, -0.0])
    latent: dict[str, Array] = {n: layer.weight.detach().numpy().copy() for n, layer in binary_layers(model).items()}
    x, target = example()
    optimizer, slow = torch.optim.Adam(model.parameters(), lr=0.1), Adam(0.1)
    scaled = chosen.weight_surrogate == "magnitude_aware"
    weight_multiplier = MULTIPLIERS["clipped_identity" if scaled else chosen.weight_surrogate]
    activation = MULTIPLIERS[chosen.surrogate]
    if chosen.surrogate_slope is not None:  # m of slope b t at v is t times that of slope b at t v
        ratio = chosen.surrogate_slope / {"swish_sign": 5, "tanh": 1}[chosen.surrogate]
        activation = lambda v: ratio * MULTIPLIERS[chosen.surrogate](ratio * v)  # noqa: E731
    if chosen.activation_clip != 1:
        activation = lambda v: (np.abs(v) <= chosen.activation_clip).astype(float)  # noqa: E731
    flips = 0
    for _ in range(6):
        optimizer.zero_grad()
        (model(torch.from_numpy(x)) - torch.from_numpy(target)).square().mean().backward()
        method.before_step(model)
        optimizer.step()
        method.after_step(model)

        alpha = {n: np.abs(w).mean(1, keepdims=True) if scaled else np.ones((len(w), 1)) for n, w in latent.items()}
        found = gradients(
            x, target, {n: alpha[n] * sgn(w) for n, w in latent.items()}, None if chosen.a32 else activation
        )
        step = {n: alpha[n] * g * weight_multiplier(latent[n]) for n, g in found.items()}
        if chosen.gradient_clip:
            step = {n: np.clip(g, -chosen.gradient_clip, chosen.gradient_clip) for n, g in step.items()}
        before = {n: sgn(w) for n, w in latent.items()}
        slow.step(latent, step)
        if chosen.weight_clip:
            latent = {n: np.clip(w, -chosen.weight_clip, chosen.weight_clip) for n, w in latent.items()}
        flips += sum(int((before[n] != sgn(w)).sum()) for n, w in latent.items())
        for name, layer in binary_layers(model).items():
            np.testing.assert_allclose(layer.weight.detach().numpy(), latent[name], rtol=0, atol=1e-12)
    assert flips > 0


def test_three_adam_steps_by_hand() -> None:
    """Algorithm 1 of the paper on one weight, in plain Python: gradient at sign(w), cut outside [-1, 1], then clip."""
    method = Ste(SteOptions())
    model = nn.Sequential(BinaryConv2d(1, 1, 1)).double()
    method.attach(model)
    weight = model[0].weight
    nn.init.constant_(weight, 0.05)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.8)
    x = torch.tensor([[[[0.5, -0.25, 0.0]]]], dtype=torch.float64)
    target = torch.tensor([[[[-1.0, 1.0, 2.0]]]], dtype=torch.float64)
    latent, trajectory = 0.05, []
    for _ in range(3):
        optimizer.zero_grad()
        ((model(x) - target) ** 2).mean().backward()
        optimizer.step()
        method.after_step(model)
        binary = -1.0 if latent < 0 else 1.0
        inputs = [1.0, -1.0, 1.0]  # sign(0) is +1
        gradient = sum(2 * (binary * a - t) * a for a, t in zip(inputs, [-1.0, 1.0, 2.0], strict=True)) / 3
        latent -= 0.8 * (gradient if abs(latent) <= 1 else 0.0)
        latent = min(max(latent, -1.0), 1.0)
        trajectory.append(latent)
        assert float(weight.item()) == latent  # type: ignore[operator]
    assert trajectory[0] != trajectory[1]


def test_weight_clip_can_be_turned_off() -> None:
    method = Ste(SteOptions(weight_clip=0.0))
    model = nn.Sequential(BinaryConv2d(1, 1, 1))
    method.attach(model)
    nn.init.constant_(model[0].weight, 3.0)  # type: ignore[arg-type]
    method.after_step(model)
    assert model[0].weight.item() == 3.0  # type: ignore[operator]


def test_metrics_are_of_the_latent_weight() -> None:
    layer = BinaryConv2d(1, 1, (1, 3))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.25, -0.5, 1.5]).view(1, 1, 1, 3))
    found = Ste(SteOptions()).layer_metrics(layer)
    assert found == {"latent_magnitude": 0.75, "distance_to_binary": pytest.approx((0.75 + 0.5 + 0.5) / 3, rel=1e-6)}


def test_a32_leaves_activations_alone() -> None:
    model = nn.Sequential(BinaryConv2d(2, 3, 1))
    Ste(SteOptions(a32=True)).attach(model)
    x = torch.randn(1, 2, 2, 2)
    expected = nn.functional.conv2d(x, sign(cast(Tensor, model[0].weight)))
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight_clip": -1.0}, "weight_clip must be at least 0"),
        ({"gradient_clip": -1.0}, "gradient_clip must be at least 0"),
        ({"activation_clip": 0.0}, "activation_clip must be above 0"),
        ({"surrogate": "tanh", "surrogate_slope": 0.0}, "surrogate_slope must be above 0"),
        ({"surrogate": "approx_sign", "activation_clip": 2.0}, "approx_sign has no clip"),
        ({"weight_surrogate": "magnitude"}, "unknown surrogate 'magnitude'"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BnnedgeError, match=words):
        SteOptions(**options)
