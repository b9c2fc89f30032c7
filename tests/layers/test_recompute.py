from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import Tensor, nn

from bnnedge.layers.binary_layers import BinaryConv2d, binary_layers, recompute_outputs, use_kernels
from bnnedge.methods import METHODS


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 33, 3),
        BinaryConv2d(33, 32, 3, 2, 1, bias=True),
        nn.BatchNorm2d(32),
        nn.Hardtanh(),
        BinaryConv2d(32, 16, 3, padding=1, groups=2),
        nn.BatchNorm2d(16),
    )


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and gradients."""
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return [y, *[p.grad for p in model.parameters() if p.grad is not None]]


@pytest.mark.parametrize("method", ["ste", "xnor", "bmd", "rbnn"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_are_the_same_to_the_bit(method: str, channels_last: bool) -> None:
    model, x = network(), torch.randn(3, 3, 8, 9)
    METHODS.load(method)(METHODS.load(method).Options()).attach(model)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    twin = copy.deepcopy(model)
    recompute_outputs(twin)
    recompute_outputs(twin)
    assert all(torch.equal(a, b) for a, b in zip(step(model, x), step(twin, x), strict=True))


@pytest.mark.parametrize("recompute", [False, True])
def test_outputs_are_freed_between_forward_and_backward(recompute: bool) -> None:
    model, outputs = network(), []
    if recompute:
        recompute_outputs(model)
    for layer in binary_layers(model).values():
        layer.register_forward_hook(lambda layer, inputs, output: outputs.append(weakref.ref(output)))
    y = model(torch.randn(2, 3, 8, 8))
    assert [output() is None for output in outputs] == [recompute, recompute]
    y.sum().backward()


def test_other_layers_and_plain_pytorch_stay_as_they_were() -> None:
    model, x = network(), torch.randn(2, 3, 8, 8)
    expected = step(model, x)
    recompute_outputs(model)
    use_kernels(model, "torch")
    assert all(torch.equal(a, b) for a, b in zip(step(model, x), expected, strict=True))
    with torch.no_grad():
        model.eval()(x)


def test_an_output_that_was_changed_in_place_is_kept() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = BinaryConv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x).add_(x.sum(1, keepdim=True)))  # type: ignore[no-any-return]

    model, x = Net(), torch.randn(2, 3, 4, 4)
    twin = copy.deepcopy(model)
    recompute_outputs(twin)
    assert all(torch.equal(a, b) for a, b in zip(step(model, x), step(twin, x), strict=True))
