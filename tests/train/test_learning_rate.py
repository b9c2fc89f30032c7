"""The learning rate of every epoch against the written formulas."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

from bnnedge.config import RunConfig
from bnnedge.train.learning_rate import learning_rate


def rates(**values: Any) -> list[float]:
    config = RunConfig(**{"lr": 0.1, "lr_type": "cos", **values})
    return [learning_rate(config, epoch) for epoch in range(config.epochs)]


def test_cosine_without_warm_up() -> None:
    # 0.05 (1 + cos(pi e / 4)); cos and the product round once or twice each, so a few units in 2^-53.
    assert rates(epochs=4) == pytest.approx(
        [0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05, 0.05 * (1 - math.sqrt(0.5))], rel=1e-14
    )


def test_cosine_after_warm_up_is_the_shorter_cosine() -> None:
    found = rates(epochs=12, warm_up=5)
    assert found[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1], rel=1e-14)
    assert found[5:] == rates(epochs=7)


def test_cosine_falls_and_never_reaches_zero() -> None:
    found = rates(epochs=100)
    assert all(a > b > 0 for a, b in pairwise(found))


def test_one_epoch() -> None:
    assert rates(epochs=1) == [0.1]


def test_steps() -> None:
    found = rates(epochs=6, lr_type="step", lr_steps=(2, 5), lr_gamma=0.5)
    assert found == [0.1, 0.1, 0.05, 0.05, 0.05, 0.025]


def test_steps_after_warm_up() -> None:
    assert rates(epochs=5, lr_type="step", lr_steps=(3,), lr_gamma=0.5, warm_up=2) == [0.05, 0.1, 0.1, 0.05, 0.05]


def test_polynomial_by_the_step() -> None:
    config = RunConfig(lr=0.5, lr_end=0.1, lr_type="poly", lr_power=2.0, lr_every="step", epochs=4)
    found = [learning_rate(config, t) for t in (0, 0.5, 2, 4)]
    assert found == pytest.approx([0.5, 0.4 * 0.875**2 + 0.1, 0.2, 0.1], rel=1e-14)


def test_cosine_to_an_end() -> None:
    assert rates(epochs=2, lr_end=0.02) == pytest.approx([0.1, 0.06], rel=1e-14)


def test_exponential_staircase() -> None:
    found = rates(epochs=5, lr_type="exp", lr_decay_epochs=2, lr_gamma=0.5)
    assert found == [0.1, 0.1, 0.05, 0.05, 0.025]


def test_warm_up_by_the_step_is_as_long_as_asked() -> None:
    config = RunConfig(lr=0.5, lr_type="poly", lr_every="step", epochs=6, warm_up=2)
    found = [learning_rate(config, t) for t in (0, 0.5, 1, 1.5, 2, 4, 6)]
    assert found == pytest.approx([0, 0.125, 0.25, 0.375, 0.5, 0.25, 0], rel=1e-14)


def test_constant() -> None:
    assert rates(epochs=3, lr_type="constant", warm_up=1) == [0.1, 0.1, 0.1]


def test_a_phase_has_its_own_length() -> None:
    config = RunConfig(lr=0.1, lr_type="cos", epochs=100)
    assert [learning_rate(config, e, 4) for e in range(4)] == rates(epochs=4)
