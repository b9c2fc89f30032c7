from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from bnnedge.binarization.sign import sign
from bnnedge.layers.binary_layers import BinaryConv2d
from bnnedge.methods.ste import Ste, SteOptions


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


def test_a32_leaves_activations_alone() -> None:
    model = nn.Sequential(BinaryConv2d(2, 3, 1))
    Ste(SteOptions(a32=True)).attach(model)
    x = torch.randn(1, 2, 2, 2)
    expected = nn.functional.conv2d(x, sign(cast(Tensor, model[0].weight)))
    assert torch.equal(model(x), expected)
