"""What ``binarize`` keeps of a user's network, what it leaves float, and what it says about that."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

import bnnedge
from bnnedge.errors import BnnedgeWarning
from bnnedge.layers.binary_layers import binary_layers

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


class Plain(nn.Conv2d):
    """A subclass that computes what its base class does."""


class Scaled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def chain(middle: nn.Module, *, activation: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 33, 3, padding=1),
        nn.BatchNorm2d(33),
        activation or nn.Hardtanh(),
        middle,
        nn.BatchNorm2d(33),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(33, 5),
    )


def warned(network: nn.Module, **options: object) -> tuple[nn.Module, str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = bnnedge.binarize(network, "ste", **options)  # type: ignore[call-overload]
    return model, "\n".join(str(w.message) for w in caught if issubclass(w.category, BnnedgeWarning))


@pytest.mark.parametrize("method", ["ste", "xnor", "rbnn", "reactnet", "bop2"])
def test_frozen_layers_stay_frozen(method: str) -> None:
    network = chain(nn.Conv2d(33, 33, 3))
    network[3].requires_grad_(False)
    model = bnnedge.binarize(network, method)
    assert isinstance(model, nn.Sequential) and "3" in binary_layers(model)
    assert not any(p.requires_grad for p in model[3].parameters())
    assert all(p.requires_grad for n, p in model.named_parameters() if not n.startswith("3."))


def test_mode_dtype_hooks_and_shared_layers_stay() -> None:
    calls = []
    shared = nn.Conv2d(33, 33, 3, padding=1)
    shared.register_forward_hook(lambda *_: calls.append(1))
    network = chain(nn.Sequential(shared, nn.BatchNorm2d(33), shared)).double().eval()
    model = bnnedge.binarize(network, "ste")
    assert not any(m.training for m in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    middle = model.get_submodule("3")
    assert isinstance(middle, nn.Sequential) and middle[0] is middle[2]
    model(X.double())
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (lambda: Scaled(33, 33, 3), "its class Scaled defines forward"),
        (lambda: parametrizations.weight_norm(nn.Conv2d(33, 33, 3)), "parametrization, weight norm or pruning"),
        (lambda: weight_norm(nn.Conv2d(33, 33, 3)), "parametrization, weight norm or pruning"),
        (lambda: nn.LazyConv2d(33, 3), "its shape is not known before its first run"),
        (
            lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(33, 33, 3), nn.Unflatten(2, (2, 31))),
            "only Conv2d and Linear have binary twins",
        ),
        (lambda: nn.ConvTranspose2d(33, 33, 3), "only Conv2d and Linear have binary twins"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_what_stays_float_is_named(middle: Callable[[], nn.Module], reason: str) -> None:
    model, text = warned(chain(nn.Sequential(nn.Conv2d(33, 33, 3, padding=1), nn.BatchNorm2d(33), middle())))
    assert list(binary_layers(model)) == ["3.0"]
    assert reason in text
    assert "3.2" in text


def test_a_subclass_that_only_renames_becomes_binary() -> None:
    model, text = warned(chain(Plain(33, 33, 3)))
    assert list(binary_layers(model)) == ["3"] and not text


def test_a_lazy_layer_becomes_binary_with_an_example() -> None:
    model, text = warned(chain(nn.LazyConv2d(33, 3)), example_inputs=X)
    assert list(binary_layers(model)) == ["3"] and not text


@pytest.mark.parametrize(
    ("activation", "said"),
    [
        (nn.ReLU(), "never negative behind ReLU '2'"),
        (nn.ReLU6(), "never negative behind ReLU6 '2'"),
        (nn.Sigmoid(), "never negative behind Sigmoid '2'"),
        (nn.LogSigmoid(), "always negative behind LogSigmoid '2'"),
        (nn.Hardtanh(), ""),
        (nn.PReLU(), ""),
        (nn.SiLU(), ""),
    ],
)
def test_constant_signs_are_said(activation: nn.Module, said: str) -> None:
    _, text = warned(chain(nn.Conv2d(33, 33, 3), activation=activation))
    assert (said in text and "learns nothing" in text) if said else not text


def test_registration_order_does_not_decide() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(33, 5)
            self.body = nn.Conv2d(33, 33, 3)
            self.stem = nn.Conv2d(3, 33, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.body(self.stem(x)).mean((2, 3)))
            return out

    assert list(binary_layers(warned(Reversed())[0])) == ["body"]


def test_the_report_says_what_became_binary_and_why_not() -> None:
    model, report = bnnedge.binarize(chain(nn.Sequential(nn.Conv2d(33, 33, 3), nn.Conv2d(33, 33, 1))), report=True)
    assert report.binary == tuple(binary_layers(model)) == ("3.0", "3.1")
    assert {k.name: k.reason for k in report.kept} == {
        "0": "it sees the network's input",
        "7": "its result reaches an output",
    }
    assert str(report).splitlines()[0] == "3.0  binary"
