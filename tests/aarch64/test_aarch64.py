"""The C++ kernels and both plug-ins on emulated AArch64 cores, with the real AArch64 LiteRT and ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.exact_network import check_results, network, write_files

Run = Callable[..., str]
REPOSITORY = Path(__file__).resolve().parents[2]

# The first two have no dot product, and on the third tables are best.
CORES = {
    "cortex-a53": ["neon", "neon_table"],
    "cortex-a72": ["neon", "neon_table"],
    "cortex-a76": ["neon_table", "neon_dot", "neon"],
    "max": ["neon_dot", "neon", "neon_table"],
}
ALWAYS = ["portable", "reference"]
KERNEL_TESTS = ["test_conv.py", "test_native.py"]


@pytest.mark.parametrize("core", CORES)
def test_kernels_against_their_definition(build: Path, run: Run, core: str) -> None:
    program = build / "tests" / "conv_kernel_test"
    output = run("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu", "-cpu", core, program)
    assert [line.partition(":")[0] for line in output.splitlines()] == [*CORES[core], "portable"]
    stems = run("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu", "-cpu", core, build / "tests" / "stem_test")
    fastest = "neon_dot" if "neon_dot" in CORES[core] else "neon"
    assert stems.startswith(f"{CORES[core][0]}: stem {fastest}\n")


@pytest.mark.slow
def test_python_tests_of_the_kernels(stage: Path, emulated_python: Path, run: Run) -> None:
    """Those that need no torch: geometry, transforms, packing and pooling of every kernel."""
    tests = REPOSITORY / "tests" / "kernels"
    pytest_alone = ["-c", os.devnull, "--rootdir", str(tests), "--noconftest", "-p", "no:cacheprovider"]
    arguments = [*pytest_alone, "--import-mode=importlib", "-q", "-x", *(str(tests / name) for name in KERNEL_TESTS)]
    output = run(emulated_python, "-P", "-m", "pytest", *arguments, BNNEDGE_PYTHONPATH=str(stage))
    assert "passed" in output and "skipped" not in output


@pytest.mark.slow
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("package", ["stage", "wheel"])
def test_plugins_in_the_stock_runtimes(
    package: str, request: pytest.FixtureRequest, emulated_python: Path, tmp_path: Path, run: Run, core: str
) -> None:
    graph, images = network(np.random.default_rng(11))
    write_files(graph, images, tmp_path)
    script = Path(__file__).with_name("run_plugins.py")
    where = str(request.getfixturevalue(package))
    output = run(emulated_python, "-P", script, tmp_path, BNNEDGE_PYTHONPATH=where, BNNEDGE_QEMU_CPU=core)
    assert output.split() == [*CORES[core], *ALWAYS]
    check_results(graph, images, tmp_path)
