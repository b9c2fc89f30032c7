"""Runs ``portable/`` in Triton's interpreter, in a process of its own: the choice holds for a whole process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize("file", ["test_kernels.py", "test_packed_layers.py", "test_block_tail.py"])
def test_portable_kernels_in_the_interpreter(file: str, run: Callable[..., str]) -> None:
    pytest.importorskip("triton")
    path = Path(__file__).parent / "portable" / file
    said = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", path, TRITON_INTERPRET="1")
    assert " passed" in said and "skipped" not in said


def test_every_portable_test_file_is_run() -> None:
    files = {path.name for path in (Path(__file__).parent / "portable").glob("test_*.py")}
    assert files == {"test_kernels.py", "test_packed_layers.py", "test_block_tail.py"}
