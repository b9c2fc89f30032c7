"""These tests run the plain ``tl`` kernels: on an NVIDIA GPU, or without one in Triton's interpreter.

The interpreter is chosen before Triton is imported (``TRITON_INTERPRET=1``), for the whole process, so that
``tests/kernels/gpu/test_portable.py`` runs this folder in a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (INTERPRETED or torch.cuda.is_available()):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True, scope="session")
def no_unused_overflow_checks() -> None:
    """The interpreter repeats each sum and product in int64 to see whether it overflows, and without ``debug`` throws
    the answer away. That is about half of all its work."""
    if INTERPRETED:
        from triton.runtime.interpreter import interpreter_builder

        interpreter_builder.options = replace(interpreter_builder.options, sanitize_overflow=False)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """New buffers hold NaN or the largest integer, so that what a kernel left unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
