"""A task, a preprocessing and a network are each added by one file and one line; every command then knows them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bnnedge.benchmarks.devices.local import LocalDevice
from bnnedge.benchmarks.rows import read_rows
from bnnedge.cli import main
from bnnedge.data import PREPROCESSINGS
from bnnedge.data.dataset import load_dataset
from bnnedge.models import MODELS
from bnnedge.tasks import TASKS
from tests.benchmarks.this_process import measure_in_this_process

REGRESSION = '''
"""Regression of the digit's number, from 0 to 1."""

import numpy as np

from bnnedge.tasks.task import Score, Task, library_of


class Regression(Task):
    """One output [N, 1]; the loss is the mean squared error."""

    name = "regression"
    scores = (Score("rmse", "RMSE", "digits", higher_is_better=False), Score("close", "within 1", "%"))

    @classmethod
    def outputs_for(cls, classes, channels):
        return 1

    def output_shape(self, height, width):
        return (1,)

    def samples(self, inputs, targets):
        return inputs, targets[:, None] / 9

    def loss(self, outputs, targets):
        return (outputs - targets.to(outputs.dtype)).square().mean()

    def soft_loss(self, outputs, teacher_outputs, temperature):
        return self.loss(outputs, teacher_outputs.detach())

    def sums(self, outputs, targets):
        errors = 9 * (outputs - targets)[:, 0]
        return library_of(outputs).stack([(errors * errors).sum(), (abs(errors) <= 1).sum()])

    def score(self, sums, samples):
        return {"rmse": float(np.sqrt(sums[0] / samples)), "close": float(sums[1]) / samples}

    def average(self, outputs, how):
        return outputs.mean(0)

    def agreement(self, found, expected):
        return float((abs(found - expected) < 1e-4).mean())
'''

HALVES = '''
"""Inputs from -1/2 to 1/2."""

import dataclasses


def halves(record):
    """Inputs from -1/2 to 1/2."""
    return dataclasses.replace(record, mean=(0.5,) * record.channels, std=(1.0,) * record.channels)
'''

SMALL = '''
"""A small network."""

from torch import nn

from bnnedge.layers.binary_layers import BinaryConv2d
from bnnedge.models.network import Network


def build(num_classes, in_channels, image_size):
    stem = [nn.Conv2d(in_channels, 33, 3, 2, 1, bias=False), nn.BatchNorm2d(33)]
    body = [BinaryConv2d(33, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.Hardtanh(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*stem, *body, nn.Flatten(), nn.Linear(32, num_classes))


SMALL = Network(
    description="One binary convolution between a float one and a float classifier.",
    build=build,
    paper="none",
    task="regression",
    classes=10,
    channels=1,
    height=16,
    width=16,
    binary_weights=9504,
    binary_layers=1,
    parameters=10264,
    smallest_size=(2, 2),
)
'''


@pytest.fixture
def new_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The three files, and the line that each has in its table."""
    for name, source in (("new_task", REGRESSION), ("new_record", HALVES), ("new_network", SMALL)):
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(TASKS._paths, "regression", "new_task:Regression")
    monkeypatch.setitem(PREPROCESSINGS._paths, "halves", "new_record:halves")
    monkeypatch.setitem(MODELS._paths, "small", "new_network:SMALL")
    monkeypatch.chdir(tmp_path)
    yield


@pytest.mark.usefixtures("new_entries")
def test_train_export_verify_evaluate_and_bench(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network names its task, so ``--task`` need not be given; the lower error picks the best epoch."""
    train = "train --method ste --model small --preprocess halves --epochs 4 --lr 0.01 --threads 1 --out run"
    assert main(train.split()) == 0
    result = json.loads(Path("run/result.json").read_text())
    assert (result["task"], result["outputs"]) == ("regression", 1)
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    errors = [row["val_rmse"] for row in rows]
    assert result["val_rmse"] == min(errors) and result["best_epoch"] == 1 + errors.index(min(errors))
    assert errors[-1] < errors[0] < 9
    said = capsys.readouterr().out
    assert f"test RMSE {result['test_rmse']:.4g} digits, within 1 {result['test_close']:.2%}" in said
    for target, suffix in (("onnx", "onnx"), ("lce", "tflite")):
        assert main(["export", "run", "--target", target]) == 0
        assert main(["evaluate", f"run/small.{suffix}", "--json", f"{suffix}.json"]) == 0
        of_file = json.loads(Path(f"{suffix}.json").read_text())
        assert of_file["task"] == "regression"
        # Outputs of a file are those of the checkpoint but for rounding; see bnnedge/export/verify.py.
        assert of_file["rmse"] == pytest.approx(result["test_rmse"], rel=1e-5)
    assert "verified in onnxruntime" in capsys.readouterr().out
    monkeypatch.setattr(LocalDevice, "measure", measure_in_this_process)
    bench = "bench run/small.onnx run/small.tflite --baseline --runs 2 --warmup 0 --json rows.jsonl"
    assert main(bench.split()) == 0
    measured = read_rows(Path("rows.jsonl"))
    for row, suffix in zip(measured, ("onnx", "tflite"), strict=False):
        of_file = json.loads(Path(f"{suffix}.json").read_text())
        assert (row.task, row.samples) == ("regression", of_file["samples"])
        # 359 squares are added in float32, there one by one and here 64 at a time: 359 / 2^24 relative, the root half.
        assert row.scores == pytest.approx({name: of_file[name] for name in ("rmse", "close")}, rel=359 * 2**-25)
    assert "RMSE" in capsys.readouterr().out
    assert main(["report", "run", "--rows", "rows.jsonl"]) == 0
    assert main(["list", "models", "-v"]) == 0
    assert "task: regression" in capsys.readouterr().out
    images = load_dataset("digits", preprocess="halves").arrays("test")[0]
    assert [float(np.min(images)), float(np.max(images))] == [-1 / 2, 1 / 2]


@pytest.mark.usefixtures("new_entries")
def test_a_task_that_does_not_fit_the_network_s_output(capsys: pytest.CaptureFixture[str]) -> None:
    Path("net.py").write_text("from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), "
                              "nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10))\n")  # fmt: skip
    train = "train --method ste --model net.py:net --task regression --image-size 8 --out run"
    assert main(train.split()) == 2
    assert "should give an output of shape (2, 1) for task regression, but gave (2, 10)" in capsys.readouterr().err
