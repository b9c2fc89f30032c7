"""The AArch64 build and an AArch64 Python under emulation, for machines that are not AArch64 themselves."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CPP = REPOSITORY / "kernels" / "cpp"


@pytest.fixture(scope="session")
def build(require: Callable[..., None], run: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build folder of ``kernels/cpp`` for AArch64 with the kernels' test program."""
    require("aarch64-linux-gnu-g++", "qemu-aarch64-static", "cmake", "ninja")
    folder = tmp_path_factory.mktemp("aarch64") / "build"
    toolchain = CPP / "cmake" / "aarch64-linux-gnu.cmake"
    run("cmake", "-S", CPP, "-B", folder, "-G", "Ninja", f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", "-DBNNEDGE_TESTS=ON")
    run("cmake", "--build", folder, "--target", "conv_kernel_test", "stem_test")
    return folder


@pytest.fixture(scope="session")
def stage(build: Path, run: Callable[..., str]) -> Path:
    """A folder whose ``bnnedge`` is this repository's package with AArch64 libraries."""
    folder = build.parent / "stage"
    run("cmake", "--build", build)
    run("cmake", "--install", build, "--prefix", folder)
    for entry in (REPOSITORY / "bnnedge").iterdir():
        if entry.name != "lib":
            (folder / "bnnedge" / entry.name).symlink_to(entry.resolve())
    return folder


@pytest.fixture(scope="session")
def wheel(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(wheels["aarch64"]) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def emulated_python(require: Callable[..., None], run: Callable[..., str]) -> Path:
    """Runs AArch64 Python with what ``sysroot.sh`` installs, which makes it if it is not there."""
    require("qemu-aarch64-static")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("BNNEDGE_AARCH64_SYSROOT") or cache / "bnnedge" / "aarch64")
    run(Path(__file__).with_name("sysroot.sh"), folder)
    return folder / "python"
