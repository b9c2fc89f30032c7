"""The AArch64 build and an AArch64 Python under emulation, for machines that are not AArch64 themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CPP = REPOSITORY / "kernels" / "cpp"
TOOLS = {
    "aarch64-linux-gnu-g++": "apt-get install g++-aarch64-linux-gnu",
    "qemu-aarch64-static": "apt-get install qemu-user-static",
    "cmake": "pip install cmake",
    "ninja": "pip install ninja",
}


def run_command(*command: str | Path, **environment: str) -> str:
    """Standard output; fails the test with the last that the command had to say."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}{done.stderr[-4000:]}", pytrace=False)
    return done.stdout


@pytest.fixture(scope="session")
def run() -> Callable[..., str]:
    return run_command


@pytest.fixture(scope="session")
def tools() -> None:
    for tool, remedy in TOOLS.items():
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} not found: {remedy}")


@pytest.fixture(scope="session")
def build(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build folder of ``kernels/cpp`` for AArch64 with its test programs."""
    folder = tmp_path_factory.mktemp("aarch64") / "build"
    toolchain = CPP / "cmake" / "aarch64-linux-gnu.cmake"
    run_command(
        "cmake", "-S", CPP, "-B", folder, "-G", "Ninja", f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", "-DBNNEDGE_TESTS=ON"
    )
    run_command("cmake", "--build", folder)
    return folder


@pytest.fixture(scope="session")
def stage(build: Path) -> Path:
    """A folder whose ``bnnedge`` is this repository's package with AArch64 libraries."""
    folder = build.parent / "stage"
    run_command("cmake", "--install", build, "--prefix", folder)
    for entry in (REPOSITORY / "bnnedge").iterdir():
        if entry.name != "lib":
            (folder / "bnnedge" / entry.name).symlink_to(entry.resolve())
    return folder


@pytest.fixture(scope="session")
def emulated_python(tools: None) -> Path:
    """Runs AArch64 Python with numpy, LiteRT, ONNX Runtime and pytest; ``sysroot.sh`` makes it if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("BNNEDGE_AARCH64_SYSROOT") or cache / "bnnedge" / "aarch64")
    run_command(Path(__file__).with_name("sysroot.sh"), folder)
    return folder / "python"
