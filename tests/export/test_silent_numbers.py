"""Numbers that a sign would hide: NaN, infinity, and inputs of one sign. They are refused or said, never exported."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bnnedge
from bnnedge.cli import main
from bnnedge.errors import BnnedgeWarning, ExportError
from bnnedge.export.constant_signs import constant_signs
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.targets import TARGETS
from bnnedge.export.trace import trace
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear
from bnnedge.layers.deploy import deploy
from bnnedge.methods import METHODS

SUFFIX = {"onnx": "onnx", "lce": "tflite"}


def network(*front: nn.Module) -> nn.Sequential:
    """Two binary layers, ``front`` in front of the first one."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 9, 3),
        nn.BatchNorm2d(9),
        nn.Sequential(*front),
        BinaryConv2d(9, 33, 3, bias=True),
        nn.BatchNorm2d(33),
        nn.Hardtanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        BinaryLinear(33, 12),
        nn.Linear(12, 4),
    )


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "where", ["0.weight", "1.running_var", "1.bias", "3.weight", "3.bias", "4.running_mean", "9.bias"]
)
@pytest.mark.parametrize("target", SUFFIX)
def test_a_number_that_is_not_finite_is_refused_by_name(
    target: str, where: str, value: float, check: bool, tmp_path: Path
) -> None:
    model = network().eval()
    model.state_dict()[where].flatten()[1] = value
    layer = where.partition(".")[0]
    with pytest.raises(ExportError, match=rf"^{layer}: .* NaN or infinite in 1 of ") as caught:
        bnnedge.export(model, torch.zeros(1, 2, 8, 8), tmp_path / f"net.{SUFFIX[target]}", target, check=check)
    assert where in str(caught.value) or where.startswith("3.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", [name for name in METHODS if name != "float32"])
def test_every_method_refuses_a_latent_weight_that_is_not_finite(method: str, tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 9, 3), nn.BatchNorm2d(9), nn.Flatten(), nn.Linear(144, 3)
    )
    model = bnnedge.binarize(net, method).eval()
    with torch.no_grad():
        model[2].weight[3, 4, 1, 1] = float("nan")  # type: ignore[index]
    with pytest.raises(ExportError, match=r"^2: .* is NaN or infinite in"):
        bnnedge.export(model, torch.zeros(1, 2, 8, 8), tmp_path / "net.onnx", check=False)


@pytest.mark.parametrize("target", SUFFIX)
def test_a_constant_that_folding_makes_infinite_is_refused(target: str, tmp_path: Path) -> None:
    model = network().eval()
    with torch.no_grad():
        model[4].weight.fill_(3e38)  # type: ignore[operator]
        model[4].running_var.fill_(1e-30)  # type: ignore[operator]
        model[4].eps = 1e-38  # type: ignore[assignment]
    with pytest.raises(ExportError, match="not finite in float32"):
        bnnedge.export(model, torch.zeros(1, 2, 8, 8), tmp_path / f"net.{SUFFIX[target]}", target, check=False)


class Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


class Shift(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - 0.25


class Minus(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x - 0.25


CONSTANT: dict[str, tuple[list[nn.Module], int]] = {
    "relu": ([nn.ReLU()], 1),
    "relu6": ([nn.ReLU6()], 1),
    "sigmoid": ([nn.Sigmoid()], 1),
    "square": ([Square()], 1),
    "relu, pooled": ([nn.ReLU(), nn.MaxPool2d(2, padding=1), nn.AvgPool2d(2)], 1),
    "minus relu": ([nn.ReLU(), Minus()], -1),
    "prelu of relu": ([nn.ReLU(), nn.PReLU(9)], 1),
    "relu twice": ([nn.ReLU(), Square(), nn.ReLU()], 1),
}
BOTH: dict[str, list[nn.Module]] = {
    "nothing": [],
    "hardtanh": [nn.Hardtanh()],
    "prelu": [nn.PReLU(9)],
    "batch norm behind relu": [nn.ReLU(), nn.BatchNorm2d(9)],
    "relu and a shift": [nn.ReLU(), Shift()],
    "tanh": [nn.Tanh()],
}


@pytest.mark.parametrize(("front", "sign"), CONSTANT.values(), ids=list(CONSTANT))
@pytest.mark.parametrize("target", SUFFIX)
def test_an_input_of_one_sign_is_said(target: str, front: list[nn.Module], sign: int, tmp_path: Path) -> None:
    model = network(*front).eval()
    size = 32 if len(front) == 3 else 8
    with pytest.warns(BnnedgeWarning, match=r"^3: the input .* (never|always) negative, so all its signs"):
        report = bnnedge.export(
            model, torch.zeros(1, 2, size, size), tmp_path / f"net.{SUFFIX[target]}", target, check=False
        )
    assert report.constant_signs == {"3": sign}
    assert f"are {sign:+d}" in "".join(str(cell) for column in report.table().columns for cell in column.cells)


@pytest.mark.parametrize("front", BOTH.values(), ids=list(BOTH))
def test_inputs_of_both_signs_raise_no_alarm(front: list[nn.Module], tmp_path: Path) -> None:
    model = network(*front)
    model.train()(torch.randn(16, 2, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error", BnnedgeWarning)
        report = bnnedge.export(model.eval(), torch.zeros(1, 2, 8, 8), tmp_path / "net.onnx")
    assert report.constant_signs == {}
    assert constant_signs(trace(deploy(model), torch.zeros(2, 2, 8, 8))) == {}


@pytest.mark.parametrize("target", SUFFIX)
def test_signs_that_were_equal_on_every_image_are_said(target: str, tmp_path: Path) -> None:
    judge = RUNTIMES.load(TARGETS.load(target).judges[0])
    if judge.unavailable():
        pytest.skip(judge.unavailable())
    model = network().eval()
    with torch.no_grad():
        model[1].bias.fill_(50.0)  # type: ignore[operator]
    path = tmp_path / f"net.{SUFFIX[target]}"
    with pytest.warns(BnnedgeWarning, match="3: .* never negative on the 64 images of the verification"):
        assert bnnedge.export(model, torch.zeros(1, 2, 8, 8), path, target).constant_signs == {"3": 1}


NET = """
from torch import nn

def net(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 9, 3), nn.BatchNorm2d(9),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, num_classes),
    )
"""
TRAIN = ["train", "--method", "ste", "--model", "net.py:net", "--image-size", "8", "--batch-size", "629"]


@pytest.mark.parametrize("target", SUFFIX)
def test_the_command_line_says_it_in_training_and_in_export(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    assert main([*TRAIN, "--epochs", "2", "--out", "run"]) == 0
    said = capsys.readouterr().err
    assert said.count("2: the input of this binary layer is never negative on 64 training images") == 1
    assert main(["export", "run", "--target", target]) == 0
    output = capsys.readouterr()
    assert "warning: 2: the input of this binary layer is never negative, so all its signs are +1" in output.err
    assert "all signs of its input" in " ".join(output.out.split())


@pytest.mark.parametrize("target", SUFFIX)
def test_the_command_line_refuses_a_run_with_nan(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET.replace("nn.ReLU(), ", ""))
    assert main([*TRAIN, "--epochs", "1", "--out", "run"]) == 0
    contents = torch.load("run/best.ckpt", weights_only=True)
    contents["model"]["1.weight"][0, 0] = float("nan")
    torch.save(contents, "run/best.ckpt")
    torch.save(contents, "run/last.ckpt")
    capsys.readouterr()
    assert main(["export", "run", "--target", target]) == 2
    assert "1: the latent weight is NaN or infinite" in capsys.readouterr().err
    assert not list(Path("run").glob(f"*.{SUFFIX[target]}"))
    assert main([*TRAIN, "--epochs", "1", "--init", "run", "--out", "next"]) == 2
    assert "1.weight holds NaN or infinity" in capsys.readouterr().err
    contents["model"]["5.weight"][:] = float("nan")
    torch.save(contents, "run/best.ckpt")
    assert main(["evaluate", "run"]) == 2
    assert "outputs that are NaN or infinite" in capsys.readouterr().err


def test_weights_that_diverge_end_the_run_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET.replace("nn.ReLU(), ", ""))
    assert main([*TRAIN, "--epochs", "3", "--lr", "1e38", "--out", "run"]) == 1
    assert "a lower --lr may help" in capsys.readouterr().err


def test_weights_of_several_calls_are_stored_once(tmp_path: Path) -> None:
    class Loop(nn.Module):
        def __init__(self, calls: int) -> None:
            super().__init__()
            self.calls = calls
            self.stem, self.conv = nn.Conv2d(2, 33, 3), BinaryConv2d(33, 33, 3, padding=1)
            self.plain, self.head = nn.Conv2d(33, 33, 3, padding=1), nn.Linear(33, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for _ in range(self.calls):
                x = self.plain(x + self.conv(x))
            return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    for calls in (1, 3):
        torch.manual_seed(0)
        bnnedge.export(Loop(calls).eval(), torch.zeros(1, 2, 8, 8), tmp_path / "net.onnx")
        stored = [len(t.raw_data) for t in onnx.load(str(tmp_path / "net.onnx")).graph.initializer]
        assert sorted(stored)[-2:] == [33 * 9 * 8, 33 * 33 * 9 * 4]
        assert sum(size >= 33 * 9 * 8 for size in stored) == 3  # with the stem's
    assert np.prod((33, 2, 3, 3)) * 4 >= 33 * 9 * 8
