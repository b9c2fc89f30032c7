from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import bnnedge
from bnnedge.errors import ExportError
from bnnedge.export import graph as g
from bnnedge.export.trace import trace
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear
from bnnedge.layers.deploy import deploy
from bnnedge.methods import METHODS
from bnnedge.models import MODELS
from bnnedge.models.create import create_model

Evaluate = Callable[..., dict[str, NDArray[np.float64]]]


def randomize(model: nn.Module, x: Tensor) -> nn.Module:
    """Gains and shifts as after training, negative ones too, and running statistics of a real batch."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = 1.0
                if module.affine:
                    nn.init.normal_(module.weight)
                    nn.init.normal_(module.bias)
        model.train()(x)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["ste", "rbnn"])  # the two ways to binarize an input
@pytest.mark.parametrize("a32", [False, True])
def test_graph_computes_what_the_model_computes(name: str, method: str, a32: bool, evaluate: Evaluate) -> None:
    model = create_model(name, num_classes=10, in_channels=1, image_size=16)
    training_method = METHODS.load(method)
    training_method(training_method.Options(a32=a32)).attach(model)
    x = torch.randn(3, 1, 16, 16)
    randomize(model, x)
    graph = trace(deploy(model), x[:2])
    with torch.no_grad():
        expected = deploy(model).double()(x.double())
    # The same float64 operations in another order.
    np.testing.assert_allclose(evaluate(graph, x.numpy())[graph.output], expected.numpy(), rtol=1e-9, atol=1e-9)
    binary = [node.name for node in graph.binary_nodes()]
    layers = [n for n, m in model.named_modules() if isinstance(m, BinaryConv2d)]
    assert binary == ([] if a32 else sorted(layers, key=binary.index))


class Everything(nn.Module):
    """The operators that users' networks are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.prelu = nn.PReLU(8)
        self.conv = BinaryConv2d(8, 8, (3, 1), padding=(1, 0), groups=2, bias=True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.drop = nn.Dropout(0.5)
        self.wide = nn.Conv2d(16, 6, 1, bias=False)
        self.norm = nn.BatchNorm2d(6, affine=False)
        self.dense = BinaryLinear(6 * 4, 9, bias=True)
        self.head = nn.Linear(9, 5)
        self.shift = nn.Parameter(torch.randn(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.stem(x))
        y = self.conv(x + self.shift) / 2 - 0.25
        x = torch.cat([self.pool(x), F.avg_pool2d(F.relu6(y), 2)], 1)
        x = 1.0 - self.norm(self.wide(self.drop(x)))
        x = F.leaky_relu(x, 0.1) * torch.sigmoid(x)
        x = F.adaptive_avg_pool2d(x, 2).view(x.size(0), -1)
        x = self.dense(torch.tanh(x))
        return F.softmax(self.head(F.relu(-x).clamp(max=3.0)), dim=1)


def test_every_supported_operator(evaluate: Evaluate) -> None:
    x = torch.randn(4, 3, 16, 16)
    model = randomize(Everything(), x)
    graph = trace(deploy(model), x[:2])
    with torch.no_grad():
        expected = deploy(model).double()(x.double())
    np.testing.assert_allclose(evaluate(graph, x.numpy())[graph.output], expected.numpy(), rtol=1e-9, atol=1e-9)
    kinds = {type(node) for node in graph.nodes}
    assert {g.Activation, g.AvgPool2d, g.BinaryConv2d, g.Clip, g.Concat, g.Mul, g.PRelu, g.Reshape} <= kinds
    assert [node.name for node in graph.binary_nodes()] == ["conv", "dense"]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = BinaryConv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))  # type: ignore[no-any-return]


def test_a_layer_that_runs_twice_is_two_nodes() -> None:
    graph = trace(deploy(Twice()), torch.zeros(2, 4, 5, 5))
    assert [node.name for node in graph.binary_nodes()] == ["conv", "conv#2"]


class Sorts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(dim=1).values


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class DividesByZero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (DividesByZero(), r"aten\.div\.Tensor cannot be exported: division by zero"),
        (Raises(), "torch.export cannot trace Raises: ValueError$"),
        (nn.Sequential(BinaryLinear(3, 3)), r"0: bnnedge\.binary_linear\.default cannot be exported: a dense"),
        (nn.Sequential(nn.Conv2d(2, 2, 2, padding="same")), "0: aten.conv2d.padding cannot be exported: padding="),
        (nn.Sequential(nn.Conv2d(2, 2, 1), Sorts()), r"operator aten\.sort\.\w+ has no counterpart"),
        (Branches(), "torch.export cannot trace Branches"),
        (nn.Sequential(nn.InstanceNorm2d(2)), "has no counterpart|cannot be exported"),
        (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), "0: aten.max_pool2d.default cannot be exported: max pooling"),
        (nn.Sequential(nn.Linear(3, 3)), r"0: aten\.linear\.default cannot be exported: a dense layer reads \[N, C\]"),
        (nn.Sequential(nn.Softmax(dim=1)), "softmax is over the last axis"),
    ],
)
def test_what_cannot_be_exported_is_named(model: nn.Module, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match=message):
        trace(deploy(model), torch.randn(2, 2, 3, 3))
    assert capfd.readouterr() == ("", "")


def test_a_model_that_is_not_deployed_is_refused() -> None:
    with pytest.raises(ExportError, match=r"^1: the layer is not in its deploy form; trace deploy\(model\)"):
        trace(nn.Sequential(nn.ReLU(), BinaryConv2d(2, 2, 1)), torch.zeros(2, 2, 3, 3))


def test_padding_by_name(evaluate: Evaluate) -> None:
    x = torch.randn(3, 2, 7, 9)
    model = nn.Sequential(
        nn.Conv2d(2, 5, (3, 1), padding="same", dilation=2),
        nn.Conv2d(5, 5, 3, padding="valid"),
        BinaryConv2d(5, 5, (1, 3), padding="same", dilation=(1, 2)),
        BinaryConv2d(5, 4, 3, padding="valid"),
    ).eval()
    with torch.no_grad():
        expected = deploy(model).double()(x.double())
    graph = trace(deploy(model), x)
    np.testing.assert_allclose(evaluate(graph, x.numpy())[graph.output], expected.numpy(), rtol=1e-9, atol=1e-9)
    assert expected.shape == (3, 4, 3, 5)


def test_public_export_is_a_function_and_a_package() -> None:
    from bnnedge.export.api import VERIFY_IMAGES

    assert callable(bnnedge.export)
    assert VERIFY_IMAGES >= 64
