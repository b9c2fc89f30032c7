"""Python files that runs, checkpoints and exported files name run only if the user has consented."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch
import yaml

from bnnedge.cli import main
from tests.cli.command_line import NET, Capture, fails, train

TRAIN = train("--epochs", "1", "--batch-size", "629", "--out", "run")


@pytest.fixture
def theirs() -> Path:
    """A run folder whose model is a file that leaves a mark when it runs, and that nobody trained with here."""
    assert main(TRAIN) == 0
    Path("other.py").write_text(f"{NET}\nopen('ran', 'w')\n")
    for name in ("best", "last"):
        contents = torch.load(f"run/{name}.ckpt", weights_only=True)
        contents["config"]["model"] = "other.py:net"
        torch.save(contents, f"run/{name}.ckpt")
    Path("run/result.json").unlink()
    return Path("other.py")


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "run"],
        ["evaluate", "run/best.ckpt"],
        ["export", "run", "--no-verify", "-o", "x.onnx"],
        ["summary", "run"],
        ["train", "--out", "run", "--resume"],
        [*TRAIN[:-1], "student", "--teacher", "run"],
    ],
)
def test_a_run_of_somebody_else_runs_no_code_without_consent(command: list[str], theirs: Path, capsys: Capture) -> None:
    fails(command, "would run that Python file", capsys)
    fails(command, str(theirs.resolve()), capsys)
    fails(command, "add --trust-code if you trust it", capsys)
    assert not Path("ran").exists() and not Path("student").exists()
    assert main([*command, "--trust-code"]) == 0
    assert Path("ran").exists()


def test_weights_to_start_from_need_no_code(theirs: Path) -> None:
    assert main([*TRAIN[:-1], "started", "--init", "run"]) == 0
    assert not Path("ran").exists()


def test_resume_with_the_same_model_given_is_consent(theirs: Path, capsys: Capture) -> None:
    for name in ("best", "last"):
        contents = torch.load(f"run/{name}.ckpt", weights_only=True)
        contents["config"]["model"] = f"{theirs.resolve()}:net"
        torch.save(contents, f"run/{name}.ckpt")
    fails(["train", "--out", "run", "--resume", "--model", "net.py:net"], "--resume keeps the run's settings", capsys)
    assert not Path("ran").exists()
    assert main(["train", "--out", "run", "--resume", "--model", "other.py:net"]) == 0
    assert Path("ran").exists()


def test_one_s_own_run_needs_no_flag_until_the_file_changes(capsys: Capture) -> None:
    assert main(TRAIN) == 0
    assert main(["evaluate", "run"]) == 0
    assert main(["export", "run", "--no-verify", "-o", "x.onnx"]) == 0
    shutil.copytree("run", "copied")
    assert main(["evaluate", "copied"]) == 0
    Path("net.py").write_text(f"{NET}\nopen('ran', 'w')\n")
    fails(["evaluate", "run"], "you have not trained with this file, as it is now", capsys)
    assert not Path("ran").exists()
    assert main(["evaluate", "run", "--trust-code"]) == 0


def test_a_settings_file_that_names_code_is_no_consent(capsys: Capture) -> None:
    Path("other.py").write_text(f"{NET}\nopen('ran', 'w')\n")
    Path("theirs.yaml").write_text(yaml.safe_dump({"model": "other.py:net", "epochs": 1, "image_size": 8}))
    command = ["train", "--config", "theirs.yaml", "--device", "cpu", "--out", "new"]
    fails(command, "theirs.yaml names", capsys)
    assert not Path("ran").exists()
    assert main([*command, "--trust-code"]) == 0


def test_an_exported_file_that_names_code_does_not_run_it(theirs: Path, capsys: Capture) -> None:
    assert main(["export", "run", "--trust-code", "--no-verify", "-o", "x.onnx"]) == 0
    Path("ran").unlink()
    model = onnx.load("x.onnx")
    (entry,) = (e for e in model.metadata_props if e.key == "bnnedge")
    assert json.loads(entry.value)["model"] == "other.py:net"
    command = ["bench", "x.onnx", "--runs", "1", "--warmup", "0", "--data", "random", "--baseline"]
    fails(command, "would run that Python file", capsys)
    assert not Path("ran").exists()
