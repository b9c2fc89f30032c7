"""Epoch numbers against hand-made cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bnnedge.data.dataset import load_dataset
from bnnedge.layers.binary_layers import BinaryConv2d
from bnnedge.train.metrics import binary_weights, evaluate, flip_rates, mean_of, positive_fractions


def test_flip_rate_and_positive_fraction() -> None:
    first, second = BinaryConv2d(1, 1, (1, 5)), BinaryConv2d(1, 1, (1, 2))
    model = nn.Sequential(first, nn.ReLU(), second)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([-0.5, -0.0, 0.0, 0.5, 2.0]).view(1, 1, 1, 5))
        second.weight.fill_(-1)
    before = binary_weights(model)
    assert positive_fractions(before) == {"0": 0.8, "2": 0.0}
    with torch.no_grad():
        first.weight.mul_(-1)
    # 0.0 and -0.0 are both +1, so only the three others flip.
    assert flip_rates(before, binary_weights(model)) == {"0": 0.6, "2": 0.0}


def test_mean_of_nothing_is_zero() -> None:
    assert mean_of([]) == 0.0
    assert mean_of(iter([1.0, 2.0])) == 1.5


class Constant(nn.Module):
    """Always class 3, by a margin of ln 2."""

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), 10)
        logits[:, 3] = math.log(2)
        return logits


def test_evaluate_covers_the_whole_split() -> None:
    dataset = load_dataset("digits", image_size=8)
    model = Constant().train()
    tally = evaluate(model, dataset, "train", torch.device("cpu"))
    labels = dataset.arrays("train")[1]
    hits = int((labels == 3).sum())
    assert not model.training
    assert tally.samples == len(labels) == 1259
    # All logits but that of class 3 are equal: the first four places go to 3, 0, 1 and 2, the fifth to 4.
    assert tally.sums.tolist() == [hits, int((labels <= 4).sum())]
    # Softmax gives 2/11 to class 3 and 1/11 to the others; float32 losses, so 2^-22 relative is ample.
    expected = math.log(11) - math.log(2) * hits / len(labels)
    assert tally.loss == pytest.approx(expected, rel=2**-20)
