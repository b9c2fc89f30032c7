"""Runs ``portable/`` in Triton's interpreter, in a process of its own: the choice holds for a whole process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def test_portable_kernels_in_the_interpreter(run: Callable[..., str]) -> None:
    pytest.importorskip("triton")
    folder = Path(__file__).parent / "portable"
    said = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder, TRITON_INTERPRET="1")
    assert " passed" in said and "skipped" not in said
