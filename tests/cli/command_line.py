"""A tiny network, and the command line as the tests of it use it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bnnedge.cli import main
from tests.conftest import ROOT

NET = """
from torch import nn

from bnnedge.layers.binary_layers import BinaryConv2d


def net(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 3, 3, 2, 1),
        nn.BatchNorm2d(3),
        BinaryConv2d(3, 9, 3, 2, 1),
        nn.BatchNorm2d(9),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(9, num_classes),
    )


def deep(num_classes, depth):
    return net(num_classes, 1)
"""

Capture = pytest.CaptureFixture[str]


def train(*arguments: str) -> list[str]:
    tiny = ["--model", "net.py:net", "--image-size", "8", "--device", "cpu", "--set", "threads=1"]
    return ["train", "--method", "ste", *tiny, *arguments]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fails(arguments: list[str], words: str, capsys: Capture, code: int = 2) -> None:
    """Check that the command ends with exit code ``code`` and one line on stderr that holds ``words``."""
    capsys.readouterr()
    assert main(arguments) == code
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert words in output.err


def run_python(code: str, **environment: str) -> str:
    """Return what ``code`` prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout
