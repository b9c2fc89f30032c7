from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bnnedge.binarization import surrogate
from bnnedge.binarization.sign import sign
from bnnedge.errors import ConfigError, UnknownNameError

POINTS = [-math.inf, -1.5, -1.0, -0.5, -1e-45, -0.0, 0.0, 1e-45, 0.25, 1.0, 1.0000001, math.inf]


def test_sign_is_plus_one_unless_below_zero() -> None:
    x = torch.tensor([*POINTS, math.nan])
    assert sign(x).tolist() == [-1.0 if v < 0 else 1.0 for v in [*POINTS, math.nan]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sign_keeps_the_dtype(dtype: torch.dtype) -> None:
    assert sign(torch.zeros(3, dtype=dtype)).dtype == dtype


def multiplier(name: str, x: float) -> float:
    t, k = 0.7, 1.3
    return {
        "identity": 1.0,
        "clipped_identity": 1.0 if abs(x) <= 1 else 0.0,
        "approx_sign": max(2 - 2 * abs(x), 0.0),
        "swish_sign": 5 * (2 - 5 * x * math.tanh(2.5 * x)) / (1 + math.cosh(5 * x)),
        "tanh": 1 / math.cosh(x) ** 2,
        "error_decay": max(k * (math.sqrt(2) * t - t * t * abs(x)), 0.0),
    }[name]


def apply(name: str, x: Tensor) -> Tensor:
    if name == "error_decay":
        return surrogate.sign_with_multiplier(x, lambda v: surrogate.error_decay_multiplier(v, t=0.7, k=1.3))
    return surrogate.get_surrogate(name)(x)


@pytest.mark.parametrize("name", [*surrogate.SURROGATES, "error_decay"])
def test_surrogate_forward_is_sign_and_backward_is_the_documented_multiplier(name: str) -> None:
    values = [v for v in POINTS if math.isfinite(v)] + [-2.1, 2.1, 1 / 3]
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    y = apply(name, x)
    assert torch.equal(y, sign(x.detach()))
    incoming = torch.linspace(-3, 2, len(values), dtype=torch.float64)
    y.backward(incoming)
    expected = incoming * torch.tensor([multiplier(name, v) for v in values], dtype=torch.float64)
    assert x.grad is not None
    # Both are float64; cosh, tanh and a difference near 0 cost a few roundings of values up to 5.
    torch.testing.assert_close(x.grad, expected, rtol=4e-15, atol=4e-15)


@pytest.mark.parametrize(
    ("name", "parameters", "x", "expected"),
    [
        ("clipped_identity", {"clip": 0.5}, [-0.5, 0.5000001, 0.0], [1.0, 0.0, 1.0]),
        ("swish_sign", {"slope": 2.0}, [0.0, 1e30], [2.0, 0.0]),
        ("tanh", {"slope": 3.0}, [0.0, 1e30], [3.0, 0.0]),
    ],
)
def test_parameters(name: str, parameters: dict[str, float], x: list[float], expected: list[float]) -> None:
    leaf = torch.tensor(x, requires_grad=True)
    surrogate.get_surrogate(name, **parameters)(leaf).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == expected


def test_tanh_with_a_height_is_the_error_decay_estimator() -> None:
    """Qin et al. 2020, eq. 8: ``k t (1 - tanh(t x)^2)``."""
    x = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    surrogate.tanh(x, t=0.1, k=10.0).backward()
    assert x.grad is not None
    assert float(x.grad) == pytest.approx(1 - math.tanh(0.03) ** 2, rel=1e-15)


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("approx_sign", {"clip": 2.0}, "approx_sign has no clip; it belongs to clipped_identity"),
        ("clipped_identity", {"slope": 2.0}, "has no slope; it belongs to swish_sign and tanh"),
    ],
)
def test_parameters_that_a_surrogate_does_not_have(name: str, parameters: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        surrogate.get_surrogate(name, **parameters)


def test_unknown_surrogate_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="unknown surrogate 'tanhh'; known: identity, clipped_identity"):
        surrogate.get_surrogate("tanhh")
