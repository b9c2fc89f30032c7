"""Which layers see the input of a network and whose results reach its outputs, by a trace and by a run."""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnnedge
from bnnedge.layers.binary_layers import binary_layers
from bnnedge.layers.data_flow.find import find_flow
from bnnedge.layers.data_flow.flow import Flow

X = torch.zeros(2, 3, 8, 8)


class Net(nn.Module):
    """Layers for the networks below, registered in an order that says nothing of their use."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.c2, self.c3, self.c4 = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.c1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)


class Residual(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.c1(x))
        x = x + self.c2(x)
        x = F.hardtanh(x) + self.c3(x)
        return self.fc(self.c4(x).mean((2, 3)))


class Heads(Net):
    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.c2(self.c1(x))
        return {"classes": self.fc(x.mean((2, 3))), "maps": (self.c3(x), torch.sigmoid(self.c4(x)))}


class TwoInputs(Net):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        x = self.c2(self.c1(x))
        return self.fc(self.c4(x if y is None else x + self.c3(y)).mean((2, 3)))


class Auxiliary(Net):
    """The layer c4 is called in training alone."""

    def forward(self, x: Tensor) -> Any:
        x = self.c2(self.c1(x))
        y = self.fc(self.c3(x).mean((2, 3)))
        return (y, self.c4(x)) if self.training else y


class Condition(Net):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("images of three channels are expected")
        x = self.c1(x)
        x = self.c2(x) if x.sum() >= 0 else self.c3(x)
        return self.fc(self.c4(x).flatten(2).mean(2).view(x.shape[0], -1))


class Sizes(Net):
    """The size of the input says nothing about its values."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(self.c2(self.c1(x)), size=x.shape[2:]) * torch.ones_like(x[:, :1])
        return self.fc(self.c3(y).mean((2, 3)))


class InPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.c2(self.c1(x))
        z = torch.zeros(2, 8, 8, 8)
        z[:, :4] = y[:, :4]
        z.relu_()
        return self.fc(self.c3(z).mean((2, 3)))


class Loop(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.c1(x)
        for _ in range(int(x.abs().sum() * 0) + 2):
            x = self.c2(x)
        return self.fc(x.mean((2, 3)))


class Functional(Net):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.c2(F.conv2d(x, self.kernel)).mean((2, 3)))


def ends(flow: Flow | None) -> tuple[set[str], set[str]]:
    assert flow is not None
    return {n for n in flow.sees if flow.is_first(n)}, {n for n in flow.sees if flow.is_last(n)}


@pytest.mark.parametrize("example", [None, X], ids=["trace", "run"])
@pytest.mark.parametrize(
    ("net", "first", "last"),
    [
        (Residual, {"c1"}, {"fc"}),
        (Heads, {"c1"}, {"fc", "c3", "c4"}),
        (TwoInputs, {"c1"}, {"fc"}),
        (Auxiliary, {"c1"}, {"fc", "c4"}),
        (Condition, {"c1"}, {"fc"}),
        (Sizes, {"c1"}, {"fc"}),
        (Functional, {"kernel"}, {"fc"}),
        (InPlace, {"c1"}, {"fc"}),
    ],
)
def test_first_and_last(net: type[nn.Module], first: set[str], last: set[str], example: Tensor | None) -> None:
    flow, failures = find_flow(net(), example)
    assert (ends(flow), failures) == ((first, last), [])


@pytest.mark.parametrize("example", [None, X], ids=["trace", "run"])
def test_data_written_into_another_tensor_flows_on(example: Tensor | None) -> None:
    flow, _ = find_flow(InPlace(), example)
    assert flow is not None and flow.sees["c3"] == {"c2"}


def test_a_run_finds_what_a_trace_cannot() -> None:
    flow, failures = find_flow(Loop())
    assert flow is None and failures[0].startswith("symbolic tracing fails: ")
    assert ends(find_flow(Loop(), X)[0]) == ({"c1"}, {"fc"})


def test_examples_by_place_and_by_name() -> None:
    y = torch.zeros(2, 8, 8, 8)
    for example in ((X, y), {"x": X, "y": y}):
        assert ends(find_flow(TwoInputs(), example)[0]) == ({"c1", "c3"}, {"fc"})


def test_an_example_that_does_not_fit_is_replaced_by_a_trace() -> None:
    flow, failures = find_flow(Residual(), torch.zeros(2, 5, 8, 8))
    assert ends(flow) == ({"c1"}, {"fc"})
    assert "forward fails on the example inputs: RuntimeError" in failures[0]


def test_wrapped_networks() -> None:
    for wrapped, prefix in (
        (cast(nn.Module, torch.compile(Residual())), "_orig_mod"),
        (nn.DataParallel(Residual()), "module"),
    ):
        assert ends(find_flow(wrapped)[0]) == ({f"{prefix}.c1"}, {f"{prefix}.fc"})


@pytest.mark.parametrize("name", ["resnet20_1w1a", "vgg_small_1w1a", "resnet18_1w1a"])
@pytest.mark.parametrize("example", [None, torch.zeros(2, 3, 32, 32)], ids=["trace", "run"])
def test_registered_networks(name: str, example: Tensor | None) -> None:
    model = bnnedge.create_model(name, num_classes=5)
    flow, failures = find_flow(model, example)
    first, last = ends(flow)
    assert flow is not None and not failures
    assert set(binary_layers(model)) == set(flow.sees) - first - last
    assert len(first) == len(last) == 1


def test_nothing_outside_is_changed() -> None:
    calls: list[Any] = []
    net = Residual().train()
    net.c2.register_forward_hook(lambda *args: calls.append(args))
    x = torch.randn(2, 3, 8, 8)
    before = {k: v.clone() for k, v in net.state_dict().items()}, x.clone(), torch.get_rng_state()
    find_flow(net, x)
    find_flow(net)
    assert not calls and net.training
    assert torch.equal(x, before[1]) and torch.equal(torch.get_rng_state(), before[2])
    assert all(torch.equal(v, before[0][k]) for k, v in net.state_dict().items())
