"""Verification passes good files and names the layer that a damaged one gets wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from bnnedge.binarization.binarizer import InputMode
from bnnedge.errors import VerificationError
from bnnedge.export import verify as verification
from bnnedge.export.graph import BinaryConv2d as BinaryNode
from bnnedge.export.graph import Conv2d, Graph, Linear, Node
from bnnedge.export.passes import optimize
from bnnedge.export.replay import rounding_bound
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.runtimes.runtime import Outputs, VerifyingRuntime
from bnnedge.export.targets import TARGETS
from bnnedge.export.trace import trace
from bnnedge.export.verify import Verification, verify
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear
from bnnedge.layers.deploy import deploy, deployed_layers

IMAGES = 64


class Net(nn.Module):
    """Residual floats, a thresholded pair with negative gains, a strided layer, a binary dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 33, 3, padding=1)
        self.first = BinaryConv2d(33, 33, 3, padding=1, bias=True)
        self.norm = nn.BatchNorm2d(33)
        self.second = BinaryConv2d(33, 12, 1)
        self.third = BinaryConv2d(12, 40, 3, stride=2, padding=1, bias=True)
        self.dense = BinaryLinear(40, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.second(nn.functional.hardtanh(self.norm(self.first(x))))
        x = self.third(x * 0.1).mean((2, 3))
        return self.head(self.dense(x) * 0.1)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(1)
    model = Net()
    nn.init.normal_(model.norm.weight)
    nn.init.normal_(model.norm.bias)
    model.train()(torch.randn(32, 2, 8, 8))
    return model.eval()


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((IMAGES, 2, 8, 8)).astype(np.float32)


def judge(target: str) -> type[VerifyingRuntime]:
    name = TARGETS.load(target).judges[0]
    runtime: type[VerifyingRuntime] = RUNTIMES.load(name)
    if runtime.unavailable():
        pytest.skip(f"{name}: {runtime.unavailable()}")
    return runtime


def check(
    target: str, model: nn.Module, images: NDArray[np.float32], damage: Callable[[Node], Node] = lambda n: n
) -> Verification:
    """Verify the file of a graph in which ``damage`` has replaced nodes."""
    graph = optimize(trace(deploy(model), torch.from_numpy(images[:2])))
    damaged: Graph = replace(graph, nodes=[damage(node) for node in graph.nodes])
    return verify(deploy(model), graph, TARGETS.load(target)().write(damaged), judge(target), images)


@pytest.mark.parametrize("target", list(TARGETS))
def test_a_good_file_passes(target: str, net: nn.Module, images: NDArray[np.float32]) -> None:
    found = check(target, net, images)
    assert (found.images, found.binary_layers, found.agreement) == (IMAGES, 4, 1.0)
    assert found.integers == IMAGES * (64 * (33 + 12) + 16 * 40 + 16)
    assert found.signs == IMAGES * (64 * (33 + 33 + 12) + 40)
    assert "integers of 4 binary layers equal" in str(found)


class Flattens(nn.Module):
    """``view`` of what a binary convolution gives, which needs its memory in the order of the axes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3)
        self.conv = BinaryConv2d(3, 5, 3)
        self.head = nn.Linear(5 * 4 * 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(self.stem(x))
        return self.head(y.view(y.size(0), -1)).squeeze(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("target", list(TARGETS))
def test_a_view_and_an_output_of_one_number(target: str, images: NDArray[np.float32]) -> None:
    assert check(target, Flattens().eval(), images).agreement == 1.0


def flip_one_weight(node: Node) -> Node:
    if node.name != "second" or not isinstance(node, BinaryNode):
        return node
    weight = node.weight.copy()
    weight[3, 32] *= -1
    return replace(node, weight=weight)


def shift_a_bias(node: Node) -> Node:
    return replace(node, bias=node.bias + 0.3) if isinstance(node, BinaryNode) and node.name == "third" else node


def raise_a_threshold(node: Node) -> Node:
    if not isinstance(node, BinaryNode) or node.threshold is None:
        return node
    return replace(node, threshold=node.threshold + 2)


def scale_the_stem(node: Node) -> Node:
    return replace(node, bias=node.bias - 0.01) if isinstance(node, Conv2d) else node


def touch_the_head(node: Node) -> Node:
    return replace(node, bias=node.bias + 1e-3) if isinstance(node, Linear) else node


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_one_weight, "^second: .* integer sums of the file differ"),
        (shift_a_bias, "^dense: the file's sign of .* is wrong"),
        (raise_a_threshold, "^second: the file's sign of .* is wrong"),
        (scale_the_stem, "^first: the file's sign of .* is wrong"),
        (touch_the_head, "^the output differs by 0.001"),
    ],
)
def test_the_layer_that_differs_is_named(
    target: str, damage: Callable[[Node], Node], message: str, net: nn.Module, images: NDArray[np.float32]
) -> None:
    with pytest.raises(VerificationError, match=message):
        check(target, net, images, damage)


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("decides", [False, True])
def test_signs_turned_by_rounding_are_counted_not_failed(target: str, decides: bool) -> None:
    """A zero image leaves only the stem's bias, 1e-9 in the checkpoint and -1e-9 in the file.

    With ``decides``, the first class has 4 x 4 times that sign more than the second one.
    """
    stem, conv, head = nn.Conv2d(1, 2, 1), BinaryConv2d(2, 4, 1), nn.Linear(16, 3)
    stem.bias = nn.Parameter(torch.tensor([1e-9, 1.0]))
    head.weight = nn.Parameter(1e-3 * head.weight.detach())
    head.bias = nn.Parameter(torch.tensor([0.0, 5.0, 0.0]))
    if decides:
        w1, w2 = conv.weight.detach().sign().flatten(1).unbind(1)
        first = w1.repeat_interleave(4)
        head.weight = nn.Parameter(torch.stack([first, 0 * first, 0 * first]))
        head.bias = nn.Parameter(torch.tensor([0.0, 4 * float(w1 @ w2), -100.0]))
    model = nn.Sequential(stem, conv, nn.Flatten(), head).eval()

    def turn(node: Node) -> Node:
        return replace(node, bias=node.bias * [-1, 1]) if isinstance(node, Conv2d) else node

    found = check(target, model, np.zeros((IMAGES, 1, 2, 2), np.float32), turn)
    assert found.flips == IMAGES * 4
    assert found.max_flip_distance == pytest.approx(1e-9)
    assert found.max_output_difference > 0
    assert found.agreement == (0.0 if decides else 1.0)


def test_outputs_that_no_sign_explains_are_refused(
    net: nn.Module, images: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_freely = verification._run_freely
    where = [True] * IMAGES

    def shifted(*arguments: Any) -> tuple[Outputs, NDArray[np.bool_]]:
        outputs, same = run_freely(*arguments)
        assert same.all()
        return {name: output + np.float32(1e-3) for name, output in outputs.items()}, np.array(where)

    monkeypatch.setattr(verification, "_run_freely", shifted)
    with pytest.raises(VerificationError, match=r"^the output differs by 0\.001 .* image whose signs are equal"):
        check("onnx", net, images)
    where[:] = [False] * IMAGES
    assert check("onnx", net, images).max_output_difference == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize(("share", "passes"), [(0.8, True), (1.25, False)])
def test_an_output_error_up_to_the_bound_passes(
    share: float, passes: bool, target: str, images: NDArray[np.float32]
) -> None:
    """Every output of the file is off by a share of the bound; a true rounding error is some thousandths of it."""
    model = nn.Sequential(BinaryConv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 3)).eval()
    graph = optimize(trace(deploy(model), torch.from_numpy(images[:2])))
    head = deploy(model).double()[2]  # type: ignore[index]
    with torch.no_grad():  # what the last layer sums up, in absolute values
        features = deploy(model).double()[:2](torch.from_numpy(images).double())  # type: ignore[index]
        largest = float((features.abs() @ head.weight.abs().T + head.bias.abs()).max())
    error = share * rounding_bound(graph) * largest

    def shift(node: Node) -> Node:
        return replace(node, bias=node.bias + error) if isinstance(node, Linear) else node

    if passes:
        check(target, model, images, shift)
    else:
        with pytest.raises(VerificationError, match=r"^the output differs by"):
            check(target, model, images, shift)


@pytest.mark.parametrize("mode", ["float", "standardized"])
@pytest.mark.parametrize("target", list(TARGETS))
def test_a_binary_layer_that_reads_floats_is_a_float_layer_of_its_signs(
    mode: InputMode, target: str, images: NDArray[np.float32]
) -> None:
    """A layer is told by its deploy form alone; the layers beside it stay binary."""
    torch.manual_seed(2)
    model = nn.Sequential(BinaryConv2d(2, 6, 3, bias=True), BinaryConv2d(6, 5, 3), nn.Flatten(), BinaryLinear(80, 3))
    deployed = deploy(model.eval())
    layers = deployed_layers(deployed)
    layers["0"].input_mode = layers["3"].input_mode = mode
    graph = optimize(trace(deployed, torch.from_numpy(images[:2])))
    assert [node.name for node in graph.binary_nodes()] == ["1"]
    first = next(node for node in graph.nodes if isinstance(node, Conv2d))
    np.testing.assert_array_equal(np.sign(first.weight), layers["0"].weight.numpy())
    writer = TARGETS.load(target)()
    data = writer.write(graph)
    rows = {row.name: row for row in writer.describe(data)}
    assert [(name, rows[name].reason, rows[name].binary_weights) for name in ("0", "1", "3")] == [
        ("0", "float activations (W1A32)", 0),
        ("1", "", 270),
        ("3", "float activations (W1A32)", 0),
    ]
    found = verify(deployed, graph, data, judge(target), images)
    assert (found.binary_layers, found.agreement) == (1, 1.0)


def test_verification_leaves_the_model_as_it_was(net: nn.Module, images: NDArray[np.float32]) -> None:
    deployed = deploy(net)
    graph = optimize(trace(deployed, torch.from_numpy(images[:2])))
    with torch.no_grad():
        before = deployed(torch.from_numpy(images))
        verify(deployed, graph, TARGETS.load("onnx")().write(graph), judge("onnx"), images)
        assert torch.equal(deployed(torch.from_numpy(images)), before)
    assert all(not layer._forward_pre_hooks and "forward" not in vars(layer) for layer in deployed.modules())
    assert all(parameter.dtype == torch.float32 for parameter in deployed.parameters())
