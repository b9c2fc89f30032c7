"""What is built and installed: one package, its library, nothing else; and what happens without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

import bnnedge

ROOT = Path(__file__).parents[1]
LINKS = ("kernels", "export", "benchmarks")
SOURCES = ("bnnedge", *LINKS, "pyproject.toml", "LICENSE", "README.md")

# -S leaves out the .pth file of an editable install, which would win over the wheel under test.
USE_NATIVE = """
import numpy as np
from bnnedge.kernels import native
words = np.zeros((1, 1, 1, 1), np.uint32)
print(native.available(), bnnedge_file := native.__file__)
print(native.bconv2d(words, words, 32).item())
"""


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is committed for the build, with its links and without build products."""
    tree = tmp_path_factory.mktemp("source") / "bnnedge"
    tree.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, tree / name)
    return tree


def build(tree: Path, out: Path, kind: str, **environment: str) -> Path:
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(out), str(tree)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (artifact,) = out.iterdir()
    return artifact


def run_from_wheel(wheel: Path, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter that sees the unpacked wheel and this environment's other packages."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    others = Path(np.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{others}"}
    return subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, cwd=folder, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def wheel(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source_tree, tmp_path_factory.mktemp("wheel"), "wheel")


def test_wheel_holds_the_package_and_its_library_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"bnnedge", f"bnnedge-{bnnedge.__version__}.dist-info"}
    libraries = sorted(name for name in names if name.startswith("bnnedge/lib/"))
    modules = ("bnnedge_kernels", "bnnedge_litert_delegate", "bnnedge_onnxruntime")
    assert libraries == [f"bnnedge/lib/{module}.so" for module in modules]
    inside = [name for name in names if name.startswith("bnnedge/")]
    assert not any("/cpp/" in name or name.endswith((".cc", ".h", ".txt")) for name in inside)
    for name in (
        "bnnedge/py.typed",
        "bnnedge/cli/main.py",
        "bnnedge/kernels/layout.py",
        "bnnedge/export/graph/graph.py",
        "bnnedge/benchmarks/turns.py",
    ):
        assert name in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_fits_every_python(wheel: Path) -> None:
    assert wheel.name.startswith(f"bnnedge-{bnnedge.__version__}-py3-none-")
    assert not wheel.name.endswith("-any.whl")


def test_wheel_works(wheel: Path, tmp_path: Path) -> None:
    done = run_from_wheel(wheel, tmp_path, USE_NATIVE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", str(tmp_path / "bnnedge/kernels/native/__init__.py"), "32"]


def test_without_a_compiler_the_wheel_is_pure_python(source_tree: Path, tmp_path: Path) -> None:
    environment = {"CXX": "/nonexistent", "SKBUILD_BUILD_DIR": str(tmp_path / "build")}
    wheel = build(source_tree, tmp_path / "wheel", "wheel", **environment)
    names = zipfile.ZipFile(wheel).namelist()
    assert "bnnedge/kernels/native/__init__.py" in names
    assert not any(name.startswith("bnnedge/lib") or "/cpp/" in name for name in names)

    done = run_from_wheel(wheel, tmp_path / "installed", USE_NATIVE)
    assert done.returncode == 1
    assert done.stdout.startswith("False")
    error = done.stderr.strip().splitlines()[-1]
    assert error.endswith("native kernels were not built: install a C++17 compiler and reinstall bnnedge")


def test_sdist_holds_one_copy_with_the_cpp_sources(source_tree: Path, tmp_path: Path) -> None:
    with tarfile.open(build(source_tree, tmp_path, "sdist")) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
        assert not any(member.issym() for member in archive.getmembers())
    assert "bnnedge/kernels/cpp/CMakeLists.txt" in names
    assert not any(name.split("/")[0] in LINKS for name in names)


@pytest.mark.parametrize("folder", LINKS)
def test_linked_folders_are_importable_only_inside_the_package(folder: str) -> None:
    done = subprocess.run([sys.executable, "-S", "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ImportError: import bnnedge.{folder}, not {folder}" in done.stderr


def test_links_are_relative() -> None:
    for folder in LINKS:
        assert os.readlink(ROOT / "bnnedge" / folder) == f"../{folder}"
