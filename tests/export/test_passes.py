from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from bnnedge.export.graph import Affine, Binarize, BinaryConv2d, Clip, Conv2d, Graph, Linear, MaxPool2d, Mean
from bnnedge.export.passes import optimize
from bnnedge.export.passes.fuse_threshold import integer_thresholds
from bnnedge.export.trace import trace
from bnnedge.layers.binary_layers import BinaryConv2d as BinaryConv
from bnnedge.layers.deploy import deploy
from bnnedge.methods import METHODS
from bnnedge.models import MODELS
from bnnedge.models.create import create_model

Evaluate = Callable[..., dict[str, NDArray[np.float64]]]


def normed(channels: int, *, gain: str) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels) if gain == "mixed" else torch.rand(channels) + 0.1)
        if gain == "mixed":
            norm.weight[0] = 0.0
        norm.bias.normal_()
        norm.running_mean.normal_(std=3)  # type: ignore[union-attr]
        norm.running_var.uniform_(0.5, 9)  # type: ignore[union-attr]
    return norm


def kinds(graph: Graph) -> list[type]:
    return [type(node) for node in graph.nodes]


def check(model: nn.Module, x: torch.Tensor, evaluate: Evaluate) -> Graph:
    """The optimized graph, having compared it with the traced one."""
    graph = trace(deploy(model), x)
    optimized = optimize(graph)
    before, after = (evaluate(one, x.numpy())[one.output] for one in (graph, optimized))
    # float64 sums of up to a few hundred terms, folded in another order
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9)
    return optimized


@pytest.mark.parametrize("gain", ["positive", "mixed"])
def test_between_binary_layers_only_integers_remain(gain: str, evaluate: Evaluate) -> None:
    model = nn.Sequential(
        BinaryConv(5, 33, 3, padding=1, bias=True), normed(33, gain=gain), nn.Hardtanh(), BinaryConv(33, 7, 1)
    )
    graph = check(model, torch.randn(4, 5, 6, 6), evaluate)
    assert kinds(graph) == [Binarize, BinaryConv2d, BinaryConv2d]
    assert [node.threshold is None for node in graph.binary_nodes()] == [False, True]


def test_pooling_moves_behind_the_sign_when_no_gain_is_negative(evaluate: Evaluate) -> None:
    def model(gain: str) -> nn.Module:
        return nn.Sequential(
            BinaryConv(5, 8, 3, padding=1), nn.MaxPool2d(2), normed(8, gain=gain), nn.Hardtanh(), BinaryConv(8, 7, 1)
        )

    x = torch.randn(4, 5, 6, 6)
    assert kinds(check(model("positive"), x, evaluate)) == [Binarize, BinaryConv2d, MaxPool2d, BinaryConv2d]
    mixed = check(model("mixed"), x, evaluate)
    assert kinds(mixed) == [Binarize, BinaryConv2d, MaxPool2d, Affine, Binarize, BinaryConv2d]


def test_floats_that_are_read_elsewhere_stay(evaluate: Evaluate) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.act = BinaryConv(4, 4, 3, padding=1), normed(4, gain="mixed"), nn.Hardtanh()
            self.second = BinaryConv(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.act(self.norm(self.first(x)))
            return y + self.second(y)  # type: ignore[no-any-return]

    graph = check(Residual(), torch.randn(2, 4, 5, 5), evaluate)
    assert all(node.threshold is None for node in graph.binary_nodes())
    assert Affine not in kinds(graph)


def test_relu_before_a_sign_is_not_dropped(evaluate: Evaluate) -> None:
    graph = check(nn.Sequential(BinaryConv(3, 4, 1), nn.ReLU(), BinaryConv(4, 2, 1)), torch.randn(2, 3, 4, 4), evaluate)
    assert Clip in kinds(graph)


class Downsample(nn.Module):
    """A binary convolution and a float shortcut, added in one of two orders; ``twice``: the shortcut is read again."""

    def __init__(self, shortcut_first: bool, twice: bool) -> None:
        super().__init__()
        self.shortcut_first, self.twice = shortcut_first, twice
        self.binary = nn.Sequential(BinaryConv(5, 7, 3, stride=2, padding=1), normed(7, gain="mixed"))
        self.shortcut = nn.Sequential(nn.Conv2d(5, 7, 1, stride=2, bias=False), normed(7, gain="mixed"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, shortcut = self.binary(x), self.shortcut(x)
        total = shortcut + y if self.shortcut_first else y + shortcut
        return torch.mul(total, shortcut) if self.twice else total


@pytest.mark.parametrize("shortcut_first", [False, True])
@pytest.mark.parametrize("twice", [False, True])
def test_the_bias_of_a_shortcut_moves_where_it_costs_nothing(
    shortcut_first: bool, twice: bool, evaluate: Evaluate
) -> None:
    graph = check(Downsample(shortcut_first, twice), torch.randn(2, 5, 9, 8), evaluate)
    (shortcut,) = (node for node in graph.nodes if isinstance(node, Conv2d))
    assert bool(shortcut.bias.any()) is twice


def test_norm_folds_into_the_dense_layers_on_both_sides(evaluate: Evaluate) -> None:
    norm = nn.BatchNorm1d(6)
    norm.running_mean.normal_()  # type: ignore[union-attr]
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 6), norm, nn.Linear(6, 3))
    graph = check(model, torch.randn(2, 3, 2, 2), evaluate)
    assert [k for k in kinds(graph) if k is not Linear] == [type(graph.nodes[0])]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["ste", "rbnn"])  # the two ways to binarize an input
def test_every_model_keeps_its_results(name: str, method: str, evaluate: Evaluate) -> None:
    model = create_model(name, num_classes=10, in_channels=1, image_size=16)
    training_method = METHODS.load(method)
    training_method(training_method.Options()).attach(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.load_state_dict(normed(module.num_features, gain="mixed").state_dict())
    graph = check(model, torch.randn(2, 1, 16, 16), evaluate)
    assert all(not isinstance(node, Affine) or name == "vgg_small_1w1a" for node in graph.nodes)


@pytest.mark.parametrize(("method", "signs", "means"), [("ste", 8, 1), ("rbnn", 16, 17)])
def test_a_block_and_its_shortcut_share_the_signs_of_their_input(method: str, signs: int, means: int) -> None:
    """19 binary layers, 3 of them shortcuts; with ste the 8 second convolutions of the blocks take thresholded bits."""
    model = create_model("resnet18_1w1a", num_classes=10, in_channels=1, image_size=16)
    training_method = METHODS.load(method)
    training_method(training_method.Options()).attach(model)
    graph = optimize(trace(deploy(model), torch.zeros(2, 1, 16, 16)))
    assert (kinds(graph).count(Binarize), kinds(graph).count(Mean)) == (signs, means)


def test_thresholds_against_exact_rational_arithmetic() -> None:
    fan_in = 9
    values = [0.0, 1e-300, 1e-8, 0.1, 1 / 3, 1.0, 3.0, 1e300]
    multiplier, bias = (a.ravel() for a in np.meshgrid(values, [-b for b in values] + values + [0.3, -0.9, 2.7, -27.0]))
    found = integer_thresholds(multiplier, bias, fan_in)
    for m, b, t in zip(multiplier, bias, found, strict=True):
        for s in range(-fan_in, fan_in + 1):
            exact = Fraction(m) * s + Fraction(b)
            rounded = m * s + b  # where rounding hides the sign, the float64 network is what counts
            assert (s < t) == (rounded < 0), (m, b, s)
            assert (rounded < 0) == (exact < 0) or abs(exact) <= abs(Fraction(b)) * Fraction(2) ** -52
