"""Bounds of values, against the values that PyTorch computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bnnedge.layers.data_flow.bounds import Bounds, bounds_of, bounds_of_constant, canonical, hull

INF = math.inf
X = torch.cat([torch.linspace(-50, 50, 4001), torch.tensor([0.0, -0.0, -1e-30, 1e-30])])
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "hardtanh": F.hardtanh,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "logsigmoid": F.logsigmoid,
    "abs": torch.abs,
    "square": torch.square,
    "exp": torch.exp,
    "neg": torch.neg,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "dropout": F.dropout,
    "sum": lambda x: x.sum()[None],
    "mean": lambda x: x.mean()[None],
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("low", "high"), [(-INF, INF), (0.0, INF), (-2.0, 3.0), (0.5, 1.0), (-4.0, -1.0)])
def test_no_value_lies_outside(name: str, low: float, high: float) -> None:
    torch.manual_seed(0)
    call = CALLS[name]
    found = bounds_of(canonical(name), call, (Bounds(low, high),), {})
    values = call(X[(low <= X) & (high >= X)])
    slack = 1e-6 * values.abs().clamp_min(1e-30)
    assert bool((values + slack >= found.low).all()) and bool((values - slack <= found.high).all())


@pytest.mark.parametrize("name", ["relu", "relu6", "sigmoid", "hardsigmoid", "softplus", "abs", "square", "exp"])
def test_activations_without_negative_values(name: str) -> None:
    found = bounds_of(canonical(name), CALLS[name], (Bounds(),), {}, "that")
    assert found.low >= 0 and found.source == "that"


@pytest.mark.parametrize("name", ["tanh", "hardtanh", "elu", "leaky_relu", "gelu", "silu", "hardswish"])
def test_activations_with_negative_values_keep_the_sign_of_what_has_none(name: str) -> None:
    assert not bounds_of(canonical(name), CALLS[name], (Bounds(),), {}).one_sign
    assert bounds_of(canonical(name), CALLS[name], (Bounds(0.0, INF, source="ReLU"),), {}).source == "ReLU"


POSITIVE = Bounds(0.0, 1.0, source="sigmoid")


@pytest.mark.parametrize(
    ("operation", "args", "kwargs", "low", "high"),
    [
        ("sub", (POSITIVE, 0.5), {}, -0.5, 0.5),
        ("rsub", (POSITIVE, 1), {}, 0.0, 1.0),
        ("sub", (1, POSITIVE), {}, 0.0, 1.0),
        ("add", (POSITIVE, POSITIVE), {"alpha": -2}, -2.0, 1.0),
        ("mul", (POSITIVE, -3.0), {}, -3.0, 0.0),
        ("mul", (Bounds(), 0.0), {}, 0.0, 0.0),
        ("mul", (Bounds(), POSITIVE), {}, -INF, INF),
        ("div", (POSITIVE, 2), {}, 0.0, 0.5),
        ("div", (POSITIVE, Bounds(-1.0, 1.0)), {}, -INF, INF),
        ("cat", ([POSITIVE, Bounds(-2.0, 0.0)],), {}, -2.0, 1.0),
        ("pow", (Bounds(), 2), {}, 0.0, INF),
        ("pow", (Bounds(), 3), {}, -INF, INF),
        ("pad", (POSITIVE, (1, 1), "constant", -1.0), {}, -1.0, 1.0),
        ("pad", (Bounds(2.0, 3.0), (1, 1)), {}, 0.0, 3.0),
        ("threshold", (Bounds(), 0.1, -2.0), {}, -2.0, INF),
        ("interpolate", (POSITIVE,), {"mode": "bicubic"}, -INF, INF),
        ("interpolate", (POSITIVE,), {"mode": "nearest"}, 0.0, 1.0),
        ("maximum", (Bounds(), POSITIVE), {}, 0.0, INF),
        ("batchnorm", (POSITIVE,), {}, -INF, INF),
        ("anythingelse", (POSITIVE,), {}, -INF, INF),
    ],
)
def test_arithmetic(operation: str, args: Any, kwargs: dict[str, Any], low: float, high: float) -> None:
    found = bounds_of(operation, lambda *_: None, args, kwargs)
    assert (found.low, found.high) == (low, high)


def test_parameters_bound_only_what_they_hold_now() -> None:
    shift = bounds_of_constant(torch.tensor([0.0, 2.0]), learnt=True)
    moved = bounds_of("add", torch.add, (Bounds(0.0, INF, source="ReLU"), shift), {})
    assert moved.one_sign and moved.learnt
    again = bounds_of("relu", F.relu, (moved,), {}, "relu")
    assert again.one_sign and not again.learnt, "ReLU has no negative value, whatever the parameter becomes"


def test_one_sign_is_that_of_the_sign_at_zero() -> None:
    assert Bounds(0.0, 1.0).one_sign and Bounds(-2.0, -1.0).one_sign
    assert not Bounds(-1.0, 0.0).one_sign and not Bounds(-1e-9, 1.0).one_sign
    assert hull([]) == Bounds() and hull([Bounds(0.0, 1.0), Bounds(-1.0, 0.5)])[:2] == (-1.0, 1.0)
    assert bounds_of_constant(torch.tensor([math.nan]), learnt=False) == Bounds()
