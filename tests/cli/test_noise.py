"""The screen shows what bnnedge has to say, and what libraries say of themselves only with ``--debug``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bnnedge.noise import debug_mode, debugging, without_noise

TRAIN = (
    "train --method ste --model resnet20_1w1a --dataset digits --image-size 8 --batch-size 629 --epochs 1 --threads 1 "
    "--device cpu --out run"
)
COMMANDS = (
    TRAIN,
    "export run --target onnx -o m.onnx",
    "export run --target lce -o m.tflite",
    "evaluate run",
    "evaluate m.tflite",
    "summary m.tflite",
    "bench m.onnx m.tflite --runs 2 --warmup 0 --json run/bench.jsonl",
    "report run -o report.png",
)


def bnnedge(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command where no library can keep a cache, which makes some of them complain."""
    nowhere = {"HOME": "/dev/null/home", "XDG_CACHE_HOME": "/dev/null/cache", "XDG_CONFIG_HOME": "/dev/null/config"}
    kept = {name: value for name, value in os.environ.items() if name not in ("MPLCONFIGDIR", "MPLBACKEND")}
    program = [sys.executable, "-m", "bnnedge", *command.split()]
    return subprocess.run(program, capture_output=True, text=True, cwd=folder, env={**kept, **nowhere})


def test_commands_that_succeed_leave_the_standard_error_empty(tmp_path: Path) -> None:
    for command in COMMANDS:
        ended = bnnedge(command, tmp_path)
        assert (ended.returncode, ended.stderr) == (0, ""), command
    assert "XNNPACK delegate" in bnnedge("evaluate m.tflite --debug", tmp_path).stderr


def test_lines_that_are_no_noise_stay_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    with without_noise():
        os.write(2, b"first\nINFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nERROR: second\n")
        os.write(2, b"\x1b[0;93m2026-01-01 [W:onnxruntime:Default, telemetry.cc:9 Persist] no home\x1b[m\nthird")
    assert capfd.readouterr().err == "first\nERROR: second\nthird"


def test_lines_stay_if_something_is_raised(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), without_noise():
        os.write(2, b"why it failed\n")
        _ = 1 / 0
    assert capfd.readouterr().err == "why it failed\n"


def test_everything_is_shown_to_those_who_debug(capfd: pytest.CaptureFixture[str]) -> None:
    assert not debugging()
    with debug_mode(True):
        assert debugging()
        with debug_mode(False), without_noise():
            os.write(2, b"INFO: all is well\n")
    assert not debugging()
    assert capfd.readouterr().err == "INFO: all is well\n"
