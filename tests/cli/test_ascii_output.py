"""A standard output that knows ASCII alone: what it lacks is replaced, nothing fails, and nothing else is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NOWHERE = {"HOME": "/dev/null/home", "XDG_CACHE_HOME": "/dev/null/cache", "XDG_CONFIG_HOME": "/dev/null/config"}
"""No library can keep a cache, which makes some of them complain."""
BENCH = ("--runs", "1", "--warmup", "0", "--data", "random")


def printed(*arguments: str, **environment: str) -> str:
    """What ``bnnedge ARGUMENTS`` prints; it succeeds and says nothing else."""
    kept = {name: value for name, value in os.environ.items() if name not in ("MPLCONFIGDIR", "MPLBACKEND")}
    done = subprocess.run(
        [sys.executable, "-m", "bnnedge", *arguments],
        env={**kept, "PYTHONPATH": str(ROOT), **ASCII, **NOWHERE, **environment},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    return done.stdout.decode("ascii")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, trained under an output of ASCII alone, and its two exported files."""
    folder = tmp_path_factory.mktemp("ascii")
    tiny = (
        "train --method ste --model resnet20_1w1a --image-size 8 --batch-size 629 --epochs 1 --threads 1 --device cpu"
    )
    assert "epoch 1/1" in printed(*tiny.split(), "--out", str(folder / "run"))
    for target, file in (("onnx", "m·.onnx"), ("lce", "m.tflite")):
        out = folder / f"made{Path(file).suffix}"
        assert "verified" in printed("export", str(folder / "run"), "--target", target, "-o", str(out))
        out.rename(folder / file)
    return folder


def test_tables_and_lines(run: Path) -> None:
    rows = str(run / "run" / "bench.jsonl")
    table = printed("bench", str(run / "m·.onnx"), str(run / "m.tflite"), *BENCH, "--json", rows)
    assert " ? 1 thread ? local ? " in table
    assert "m.tflite" in table
    assert "classifier" in printed("summary", str(run / "m.tflite"))
    assert "top-1" in printed("evaluate", str(run / "run"))
    assert printed("report", str(run / "run")) == f"wrote {run}/run/report.png\n"
    assert "paper:" in printed("list", "methods", "--verbose")
    assert "kernels" in printed("doctor")


def test_the_way_that_the_user_chose_stays(run: Path) -> None:
    table = printed("bench", str(run / "m.tflite"), *BENCH, PYTHONIOENCODING="ascii:backslashreplace")
    assert r" \xb7 1 thread \xb7 local \xb7 " in table
