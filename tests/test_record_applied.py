"""A file's preprocessing record is what every reader applies: ``evaluate``, ``bench``, and the agent on a device."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from bnnedge.benchmarks.bench import bench
from bnnedge.cli import main
from bnnedge.config import RunConfig
from bnnedge.export.evaluate import evaluate_file
from bnnedge.export.run import export_run
from bnnedge.export.targets.target import read_file
from bnnedge.train.start import start_run

NET = """
from torch import nn

from bnnedge.layers.binary_layers import BinaryConv2d


def net(num_classes):
    stem = [nn.Conv2d(1, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)]
    body = [BinaryConv2d(32, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.Hardtanh(), nn.AdaptiveAvgPool2d(2)]
    return nn.Sequential(*stem, *body, nn.Flatten(), nn.Linear(256, num_classes))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learnt something, as an ONNX file."""
    folder = tmp_path_factory.mktemp("record")
    (folder / "net.py").write_text(NET)
    model = f"{folder / 'net.py'}:net"
    start_run(RunConfig(method="ste", model=model, image_size=(8,), epochs=12, lr=0.02, threads=1), folder / "run")
    return export_run(folder / "run", "onnx").path


def with_record(file: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same network with another record in its metadata."""
    model = onnx.load(file)
    entry = next(p for p in model.metadata_props if "preprocessing" in p.value)
    metadata = json.loads(entry.value)
    del metadata["digest"]  # which would notice the change
    change(metadata)
    entry.value = json.dumps(metadata)
    onnx.save(model, path)
    return path


def scores(file: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """The scores that ``evaluate``, ``bench`` and an agent behind a pipe (in place of ssh) measure, in this order."""
    shell = "import subprocess, sys; sys.exit(subprocess.call(['/bin/sh', '-c', sys.argv[-1]]))"
    monkeypatch.setenv("BNNEDGE_SSH", shlex.join([sys.executable, "-c", shell]))
    device = f"ssh://somewhere{sys.executable}"
    rows = [bench([file], runs=2, warmup=0, device=where)[0] for where in ("local", device)]
    assert [row.samples for row in rows] == [359, 359]
    return [dict(evaluate_file(file, "test").scores), *(row.scores for row in rows)]


def test_all_readers_agree_to_the_image(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = scores(file, monkeypatch)
    assert found[0]["top1"] > 0.8
    assert found[0] == found[1] == found[2]


def test_all_readers_apply_a_changed_mean(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(metadata: dict[str, Any]) -> None:
        metadata["preprocessing"]["mean"] = [0.9]

    changed = scores(with_record(file, tmp_path / "changed.onnx", change), monkeypatch)
    assert changed[0]["top1"] < scores(file, monkeypatch)[0]["top1"] - 0.2
    assert changed[0] == changed[1] == changed[2]


def test_the_old_description_of_a_file_is_read(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the versions before there were records name the data set's mean and standard deviation."""

    def change(metadata: dict[str, Any]) -> None:
        record = metadata.pop("preprocessing")
        metadata["dataset"] = {
            "name": metadata.pop("dataset"),
            "num_classes": metadata.pop("outputs"),
            "class_names": metadata.pop("classes"),
            "in_channels": record["channels"],
            "image_size": record["height"],
            "mean": record["mean"],
            "std": record["std"],
        }
        for name in ("task", "validation_split"):
            del metadata[name]

    old = with_record(file, tmp_path / "old.onnx", change)
    assert scores(old, monkeypatch) == scores(file, monkeypatch)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["preprocessing"].pop("std"), "the preprocessing record lacks std"),
        (lambda m: m["preprocessing"].update(std=[0]), "std.0: input should be greater than"),
        (lambda m: m["preprocessing"].update(mean=["__import__('os')"]), "mean.0: input should be a valid number"),
        (lambda m: m.update(preprocessing=[1]), "the preprocessing record must be a mapping"),
        (lambda m: m.update(task="mind reading"), "unknown task 'mind reading'"),
        (lambda m: m.update(classes="abc"), "classes"),
        (lambda m: m.update(outputs=0), "outputs"),
        (lambda m: m.update(classes=["a", "b"]), "digits does not fit|its 2 classes"),
    ],
)
def test_a_damaged_description_is_one_line(
    file: Path, change: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = with_record(file, tmp_path / "damaged.onnx", change)
    for command in (["evaluate", str(path)], ["bench", str(path), "--data", "digits"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and len(error.strip().splitlines()) == 1
        assert any(word in error for word in words.split("|")), error


@pytest.mark.parametrize(("target", "layout"), [("onnx", "NCHW"), ("lce", "NHWC")])
def test_the_record_says_how_the_file_s_input_is_laid_out(file: Path, target: str, layout: str) -> None:
    metadata = read_file(export_run(file.parent, target, check=False).path).metadata
    assert metadata["preprocessing"]["layout"] == layout
    assert (metadata["dataset"], metadata["classes"]) == ("digits", list("0123456789"))
