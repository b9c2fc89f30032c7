"""The screen shows what bnnedge has to say, and what libraries say of themselves only with ``--debug``."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bnnedge.export.graph import Graph, Linear, TensorSpec
from bnnedge.export.targets.tflite.target import LceTarget
from bnnedge.noise import debug_mode, debugging, without_noise


def test_runtimes_are_silent_and_heard_by_those_who_debug(tmp_path: Path) -> None:
    """``test_ascii_output.py`` sees that no command says anything on the standard error."""
    node = Linear(name="fc", inputs=("x",), output="y", weight=np.ones((2, 3)), bias=np.ones(2))
    tensors = {"x": TensorSpec((1, 3)), "y": TensorSpec((1, 2))}
    data = LceTarget().write(Graph(("x",), ("y",), [node], tensors, {"input_shape": [3]}))
    (tmp_path / "net.tflite").write_bytes(data)
    bench = "bench net.tflite --runs 1 --warmup 0 --data random --debug"
    program = [sys.executable, "-m", "bnnedge", *bench.split()]
    ended = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0
    assert "XNNPACK delegate" in ended.stderr


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


def test_what_libraries_log_is_shown_to_those_who_debug(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, root.handlers = root.handlers, []  # those of pytest
    try:
        for wanted in (False, True, False):
            with debug_mode(wanted):
                root.warning("wanted: %s", wanted)
        assert root.handlers == []
    finally:
        root.handlers = before
    assert capsys.readouterr().err == "wanted: True\n"


def test_everything_is_shown_to_those_who_debug(capfd: pytest.CaptureFixture[str]) -> None:
    assert not debugging()
    with debug_mode(True):
        assert debugging()
        with debug_mode(False), without_noise():
            os.write(2, b"INFO: all is well\n")
    assert not debugging()
    assert capfd.readouterr().err == "INFO: all is well\n"
