"""Nothing that a network does is left out of its file in silence: layers, calls, code and hooks of the user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

import bnnedge
from bnnedge.binarization.binarizer import Binarizer
from bnnedge.cli import main
from bnnedge.errors import ExportError, VerificationError
from bnnedge.export.passes import optimize
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.targets import TARGETS
from bnnedge.export.trace import trace
from bnnedge.export.verify import Verification, verify
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear
from bnnedge.layers.deploy import deploy

SUFFIX = {"onnx": "onnx", "lce": "tflite"}


class Loop(nn.Module):
    """One binary convolution under three names, called in turn, another one that nothing calls, a dense one twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 33, 3, 2, 1), nn.BatchNorm2d(33)
        self.unused = BinaryConv2d(33, 33, 3)
        self.conv = BinaryConv2d(33, 33, 3, 1, 1)
        self.again = self.conv
        self.inside = nn.ModuleDict({"third": self.conv})
        self.norms = nn.ModuleList(nn.BatchNorm2d(33) for _ in range(5))
        self.dense = BinaryLinear(33, 33)
        self.head = nn.Linear(33, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        for i, norm in enumerate(self.norms):
            x = x + norm((self.again, self.inside["third"], self.conv)[i % 3](x))
        y = self.dense(x.mean((2, 3)))
        return self.head(self.dense(y - 0.5) * 0.1)  # type: ignore[no-any-return]


def settled(model: nn.Module, channels: int = 2) -> nn.Module:
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    for _ in range(3):
        model.train()(torch.randn(16, channels, 8, 8))
    return model.eval()


def export(model: Any, target: str, folder: Path, **options: Any) -> Verification:
    if RUNTIMES.load(TARGETS.load(target).judges[0]).unavailable():
        pytest.skip(f"the judge of {target} is not here")
    path = folder / f"net.{SUFFIX[target]}"
    found = bnnedge.export(model, torch.zeros(1, 2, 8, 8), path, target, **options).verification
    assert found is not None
    return found


@pytest.mark.parametrize("target", SUFFIX)
def test_every_call_of_a_layer_of_several_names_is_compared(target: str, tmp_path: Path) -> None:
    found = export(settled(Loop()), target, tmp_path)
    assert found.binary_layers == 7
    assert found.integers == 64 * (5 * 33 * 16 + 2 * 33)


@pytest.mark.parametrize("target", SUFFIX)
def test_a_layer_of_the_file_that_nothing_was_compared_with_is_an_error(target: str) -> None:
    deployed, images = deploy(settled(Loop())), np.zeros((4, 2, 8, 8), np.float32)
    graph = optimize(trace(deployed, torch.zeros(2, 2, 8, 8)))
    judge, data = RUNTIMES.load(TARGETS.load(target).judges[0]), TARGETS.load(target)().write(graph)
    if judge.unavailable():
        pytest.skip("the judge is not here")
    with pytest.raises(VerificationError, match="compared with none of the checkpoint's"):
        verify(deployed, replace(graph, calls=("head", *graph.calls[1:])), data, judge, images)
    with pytest.raises(VerificationError, match="more than the 6 times that were exported"):
        verify(deployed, replace(graph, calls=graph.calls[:-1]), data, judge, images)
    with pytest.raises(VerificationError, match="extra: the layer was exported, but the network did not call it"):
        verify(deployed, replace(graph, calls=(*graph.calls, "extra")), data, judge, images)


class Doubled(BinaryConv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Shifted(BinaryConv2d):
    def binarize_input(self, x: Tensor) -> Tensor:
        return super().binarize_input(x - 1)


class Renamed(BinaryConv2d):
    """A subclass that computes nothing else."""

    def extra_repr(self) -> str:
        return "renamed"


def layer(kind: type[BinaryConv2d]) -> Callable[[nn.Sequential], None]:
    def replace_layer(net: nn.Sequential) -> None:
        net[1] = kind(8, 9, 3, padding=1)

    return replace_layer


def bind_forward(net: nn.Sequential) -> None:
    plain = net[1].forward
    net[1].forward = lambda x: plain(x) + 3


LEFT_OUT: dict[str, Callable[[nn.Sequential], object]] = {
    "a forward of a subclass": layer(Doubled),
    "an input rule of a subclass": layer(Shifted),
    "a forward of the instance": bind_forward,
    "a hook": lambda net: net[1].register_forward_hook(lambda m, x, y: y * 2),
    "a pre-hook": lambda net: net[1].register_forward_pre_hook(lambda m, x: (x[0] - 1,)),
    "a hook with keywords": lambda net: net[1].register_forward_hook(lambda m, x, k, y: -y, with_kwargs=True),
}


def small(change: Callable[[nn.Sequential], object] = lambda _: None) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        BinaryConv2d(8, 9, 3, padding=1),
        nn.BatchNorm2d(9),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(9, 4),
    )
    change(net)
    return settled(net)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("change", LEFT_OUT.values(), ids=list(LEFT_OUT))
@pytest.mark.parametrize("target", SUFFIX)
def test_what_the_file_would_leave_out_is_refused_by_name(
    target: str, change: Callable[[nn.Sequential], object], check: bool, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"^1: the layer has .* would leave out"):
        export(small(change), target, tmp_path, check=check)
    assert list(tmp_path.iterdir()) == []


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0.5 - 0.01


KEPT: dict[str, Callable[[nn.Sequential], object]] = {
    "a subclass that computes nothing else": layer(Renamed),
    "a hook of a float layer": lambda net: net[2].register_forward_hook(lambda m, x, y: y * 2),
    "a pre-hook of the network": lambda net: net.register_forward_pre_hook(lambda m, x: (x[0] * -3,)),
    "a hook of the network": lambda net: net.register_forward_hook(lambda m, x, y: y + 1),
    "a parametrized binary layer": lambda net: parametrize.register_parametrization(net[1], "weight", Halved()),
    "a parametrized float layer": lambda net: parametrize.register_parametrization(net[0], "weight", Halved()),
}


@pytest.mark.parametrize("change", KEPT.values(), ids=list(KEPT))
@pytest.mark.parametrize("target", SUFFIX)
def test_other_code_of_the_user_is_exported(
    target: str, change: Callable[[nn.Sequential], object], tmp_path: Path
) -> None:
    model = small(change)
    images = np.random.default_rng(0).standard_normal((64, 2, 8, 8)).astype(np.float32)
    assert export(model, target, tmp_path, verify_images=images).agreement == 1.0
    runtime = RUNTIMES.load(TARGETS.load(target).judges[0])
    found = runtime.open((tmp_path / f"net.{SUFFIX[target]}").read_bytes()).run(images)
    with torch.no_grad():
        np.testing.assert_allclose(found, model(torch.from_numpy(images)).numpy(), rtol=1e-4, atol=1e-5)


class Lies(Binarizer):
    """It binarizes its input otherwise than its ``input_mode`` says."""

    def binarize_input(self, x: Tensor) -> Tensor:
        return super().binarize_input(x - 0.5)


@pytest.mark.parametrize("target", SUFFIX)
def test_a_deploy_form_that_computes_something_else_is_seen(target: str, tmp_path: Path) -> None:
    def lie(net: nn.Sequential) -> None:
        net[1].binarizer = Lies()

    with pytest.raises(VerificationError, match=r"^an output differs by .* something between layer 1 and there"):
        export(small(lie), target, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", SUFFIX)
def test_wrapped_networks_give_the_file_of_the_plain_one(target: str, tmp_path: Path) -> None:
    plain: Any = small()
    export(plain, target, tmp_path)
    path = tmp_path / f"net.{SUFFIX[target]}"
    wanted = path.read_bytes()
    compiled: Any = torch.compile(plain, backend="eager")
    compiled(torch.zeros(3, 2, 8, 8))
    wrapped: dict[str, Any] = {
        "compiled": compiled,
        "parallel": nn.DataParallel(plain),
        "averaged": AveragedModel(plain),
        "compiled average": torch.compile(AveragedModel(plain), backend="eager"),
        "in training mode": small().train(),
        "float64": small().double(),
    }
    for name, model in wrapped.items():
        training = model.training
        export(model, target, tmp_path)
        assert path.read_bytes() == wanted, name
        assert model.training == training
    export(small().half(), target, tmp_path)
    first: Any = torch.compile(plain[:2], backend="eager")
    inside = nn.Sequential(first, plain[2:])
    inside(torch.zeros(3, 2, 8, 8))
    assert export(inside.eval(), target, tmp_path).agreement == 1.0


class Flat(nn.Module):
    """Filters whose taps add up to zero, so that a flat image leaves only what rounding left."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 40, 3, bias=False), nn.BatchNorm2d(40)
        self.conv, self.head = BinaryConv2d(40, 40, 3), nn.Conv2d(40, 4, 4, bias=False)
        for conv in (self.stem, self.head):
            conv.weight = nn.Parameter(conv.weight.detach() * 50)
            conv.weight = nn.Parameter(conv.weight.detach() - conv.weight.detach().mean((1, 2, 3), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head(self.conv(y) * 0 + 100.3).flatten(1) - 0 * y.mean((1, 2, 3))[:, None]  # type: ignore[no-any-return]


@pytest.mark.parametrize("target", SUFFIX)
def test_sums_that_cancel_are_judged_by_their_operands(target: str, tmp_path: Path) -> None:
    images = np.full((64, 2, 8, 8), 213.7, np.float32)
    assert export(Flat().eval(), target, tmp_path, verify_images=images).binary_layers == 1


@pytest.mark.parametrize("target", SUFFIX)
def test_hooks_are_refused_on_the_command_line(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("""
from torch import nn
from bnnedge.layers.binary_layers import BinaryConv2d

def net(num_classes):
    middle = BinaryConv2d(4, 4, 3)
    middle.register_forward_hook(lambda m, x, y: y * -1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
""")
    train = ["train", "--method", "ste", "--model", "net.py:net", "--image-size", "8", "--epochs", "1", "--out", "run"]
    assert main(train) == 0
    capsys.readouterr()
    assert main(["export", "run", "--target", target]) == 2
    assert "1: the layer has forward hooks" in capsys.readouterr().err
    assert not list(tmp_path.glob("run/*.onnx")) and not list(tmp_path.glob("run/*.tflite"))
