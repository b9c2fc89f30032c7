"""Hostile files are run or refused; in a process of their own, which must not die."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.kernels.litert.hostile import HOSTILE
from tests.kernels.litert.running import needs_delegate

pytestmark = needs_delegate


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_do_not_crash(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.litert.hostile", name], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ran, refused = map(int, done.stdout.split()[-2:])
    assert ran > 0 and refused > 100
