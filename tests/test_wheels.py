"""The wheels that ``.ci/wheels`` makes; the one for AArch64 runs in ``tests/aarch64``."""

from __future__ import annotations

import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bnnedge.kernels import native
from tests.conftest import ROOT
from tests.exact_network import check_results, network, write_files

Run = Callable[..., str]

MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
GLIBC = (2, 17)
SYSTEM_LIBRARIES = {"libc", "libm", "libpthread", "libdl", "ld-linux-x86-64", "ld-linux-aarch64"}
LITERT_SYMBOLS = {"tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate"}

pytestmark = pytest.mark.slow

USE_KERNELS = """
import numpy as np
from bnnedge.kernels import native, reference
rng = np.random.default_rng(0)
words = rng.integers(0, 2**32, (2, 7, 5, 3), np.uint32)
filters = rng.integers(0, 2**32, (33, 3, 3, 3), np.uint32)
arguments, settings = (words, filters, 96), {"stride": (2, 2), "padding": (1, 1)}
assert np.array_equal(native.bconv2d(*arguments, **settings), reference.bconv2d(*arguments, **settings))
print(native.__file__, *native.kernel_names())
"""


@pytest.fixture(scope="session", params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def unpacked(wheels: dict[str, Path], machine: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(machine)
    with zipfile.ZipFile(wheels[machine]) as archive:
        archive.extractall(folder)
    return folder


def test_libraries_need_nothing_newer_than_manylinux2014(unpacked: Path, machine: str) -> None:
    elffile = pytest.importorskip("elftools.elf.elffile", reason="pip install 'bnnedge[wheels]'")
    libraries = sorted((unpacked / "bnnedge" / "lib").iterdir())
    assert [path.stem for path in libraries] == ["bnnedge_kernels", "bnnedge_litert_delegate", "bnnedge_onnxruntime"]
    for path in libraries:
        with path.open("rb") as stream:
            elf = elffile.ELFFile(stream)
            assert elf["e_machine"] == MACHINES[machine]
            needed = {tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")}
            assert {name.partition(".")[0] for name in needed} <= SYSTEM_LIBRARIES
            for _, versions in elf.get_section_by_name(".gnu.version_r").iter_versions():
                for version in versions:
                    family, _, number = version.name.partition("_")
                    assert family == "GLIBC" and tuple(map(int, number.split("."))) <= GLIBC, version.name
            symbols = elf.get_section_by_name(".dynsym").iter_symbols()
            exported = {symbol.name for symbol in symbols if symbol.name and symbol["st_shndx"] != "SHN_UNDEF"}
            if path.stem == "bnnedge_kernels":
                assert exported and all(name.startswith("bnnedge_") for name in exported)
            else:
                plugins = {"bnnedge_litert_delegate": LITERT_SYMBOLS, "bnnedge_onnxruntime": {"RegisterCustomOps"}}
                assert exported == plugins[path.stem]


def test_x86_64_wheel_installs_and_runs(wheels: dict[str, Path], run: Run, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheels["x86_64"])
    # The dependencies are this environment's. Its own .pth files, of an editable install say, are not looked at.
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    where, *kernels = run(python, "-P", "-c", USE_KERNELS).split()
    assert Path(where) == packages / "bnnedge" / "kernels" / "native" / "__init__.py"
    assert kernels == native.kernel_names()  # those that another compiler's build finds here
    report = run(environment / "bin" / "bnnedge", "doctor")
    assert kernels[0] in report and "not built" not in report
    graph, images = network(np.random.default_rng(11))
    write_files(graph, images, tmp_path)
    assert run(python, "-P", ROOT / "tests" / "aarch64" / "run_plugins.py", tmp_path).split() == kernels
    check_results(graph, images, tmp_path)


def test_x86_64_libraries_load_on_plain_x86_64(
    wheels: dict[str, Path], run: Run, require: Callable[..., None], tmp_path: Path
) -> None:
    require("qemu-x86_64-static")
    with zipfile.ZipFile(wheels["x86_64"]) as archive:
        archive.extractall(tmp_path)
    libraries = (tmp_path / "bnnedge" / "lib").iterdir()
    load = "import ctypes, sys; [ctypes.CDLL(path) for path in sys.argv[1:]]; print('loaded')"
    assert run("qemu-x86_64-static", "-cpu", "qemu64,-pni", sys.executable, "-S", "-c", load, *libraries) == "loaded\n"
