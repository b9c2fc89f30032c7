"""No CPU feature is assumed: the libraries run on plain x86-64, and each kernel only where its instructions exist."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., str]
CPP = Path(__file__).resolve().parents[2] / "kernels" / "cpp"

# QEMU's CPU models. The first has SSE2 and no more; the emulator stops at an instruction that a model lacks.
CPUS = {
    "qemu64,-pni": ["portable"],
    "Nehalem": ["popcnt", "portable"],
    "Haswell": ["avx2", "popcnt", "portable"],
}
LIBRARIES = ["bnnedge_kernels", "tflite/bnnedge_litert_delegate", "onnxruntime/bnnedge_onnxruntime"]

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 compiler and system")


@pytest.fixture(scope="module")
def build(require: Callable[..., None], run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build folder of ``kernels/cpp``, as it is installed, and the kernels' test program."""
    require("g++", "cmake", "ninja")
    folder = tmp_path_factory.mktemp("x86") / "build"
    run("cmake", "-S", CPP, "-B", folder, "-G", "Ninja", "-DBNNEDGE_TESTS=ON")
    run("cmake", "--build", folder)
    return folder


@pytest.mark.parametrize("cpu", CPUS)
def test_kernels_against_their_definition(build: Path, require: Callable[..., None], run: Run, cpu: str) -> None:
    require("qemu-x86_64-static")
    output = run("qemu-x86_64-static", "-cpu", cpu, build / "tests" / "conv_kernel_test")
    assert [line.partition(":")[0] for line in output.splitlines()] == CPUS[cpu]
    stems = run("qemu-x86_64-static", "-cpu", cpu, build / "tests" / "stem_test").splitlines()
    # Popcounts are no help to a stem.
    names = ["portable" if name == "popcnt" else name for name in CPUS[cpu]]
    assert stems[:-2] == [f"{name}: stem {stem}" for name, stem in zip(CPUS[cpu], names, strict=True)]


def test_libraries_load_on_plain_x86_64(build: Path, require: Callable[..., None], run: Run) -> None:
    require("qemu-x86_64-static")
    load = "import ctypes, sys; [ctypes.CDLL(path) for path in sys.argv[1:]]; print('loaded')"
    libraries = [build / f"{library}.so" for library in LIBRARIES]
    assert run("qemu-x86_64-static", "-cpu", "qemu64,-pni", sys.executable, "-S", "-c", load, *libraries) == "loaded\n"


def test_newer_instructions_stay_in_their_own_files(build: Path, require: Callable[..., None], run: Run) -> None:
    """And of the code in those files nothing can be linked into another: an inline function or a template that two
    files share is kept once, from whichever comes first. Nor may it run when a library is loaded."""
    require("objdump")
    newer = re.compile(r"\t(v[a-z]\w*|popcnt)\s.*|%[yz]mm.*")
    objects = list(build.rglob("*.o"))
    for_newer = {path for path in objects if path.parent.name == "x86"}
    assert len(for_newer) == len(list((CPP / "x86").glob("*.cc"))) and len(objects) > 20
    for path in objects:
        found = newer.search(run("objdump", "-d", "--no-show-raw-insn", path))
        assert (found is not None) == (path in for_newer), f"{path.name}: {found and found[0]}"
    for path in for_newer:
        assert ".init_array" not in run("objdump", "-h", path)
        defined = [line for line in run("objdump", "-tC", path).splitlines() if " *UND*" not in line]
        shared = [line for line in defined if re.match(r"\w+ [gwu!]", line) or re.match(r"\w+  w", line)]
        assert all(re.search(r" bnnedge::k(Conv|Pack|Pointwise|Stem)\w+$", line) for line in shared) and shared, shared
