"""The C++ kernels and both plug-ins on emulated AArch64 cores, with the real AArch64 LiteRT and ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bnnedge.benchmarks.bench import open_device
from bnnedge.benchmarks.devices.device import BenchmarkInput, BenchmarkSettings, ModelFile
from bnnedge.data.info import DatasetInfo
from bnnedge.data.preprocessing import Preprocessing
from bnnedge.export import graph as g
from tests.exact_network import check_results, expected, network, write_files

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
    """The tests that need no torch run there: geometry, transforms, packing and pooling of every kernel."""
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


@pytest.mark.slow
def test_bench_on_a_device(stage: Path, emulated_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``bench --device ssh://``, but for the network: the agent runs on an AArch64 machine that has no torch."""
    python, login = tmp_path / "python", tmp_path / "ssh"
    # The emulator starts no programs of its own architecture; the agent measures memory in a process of its own.
    module = (
        "import runpy, sys; _, sys.executable, _, name, *sys.argv[1:] = sys.argv; "
        "runpy.run_module(name, run_name='__main__')"
    )
    python.write_text(f'#!/bin/sh\nexec {emulated_python} -P -c "{module}" "$0" "$@"\n')
    login.write_text('#!/bin/sh\nfor last; do :; done; eval "$last"\n')
    for program in (python, login):
        program.chmod(0o755)
    monkeypatch.setenv("BNNEDGE_SSH", str(login))
    monkeypatch.setenv("BNNEDGE_PYTHONPATH", str(stage))
    graph, images = network(np.random.default_rng(12))
    labels = expected(graph, images).mean((2, 3)).argmax(axis=1)
    mean = g.Mean(name="mean", inputs=graph.outputs, output="means", axes=(2, 3), keepdims=False)
    tensors = {**graph.tensors, "means": g.TensorSpec((1, 21))}
    classifier = replace(graph, nodes=[*graph.nodes, mean], outputs=("means",), tensors=tensors)
    write_files(classifier, images, tmp_path)
    record = Preprocessing(33, 11, 11, 1.0, (0.0,) * 33, (1.0,) * 33)
    info = DatasetInfo("noise", "classification", 21, tuple(map(str, range(21))), record)
    files = [
        ModelFile(name, (tmp_path / name).read_bytes(), runtime, {"input_shape": [33, 11, 11]})
        for name, runtime in (("net.tflite", "litert+bnnedge"), ("net.onnx", "onnxruntime+bnnedge"))
    ]
    with open_device(f"ssh://pi@board{python}") as device:
        assert [device.unavailable(file.runtime) for file in files] == [None, None]
        assert "larq-compute-engine is not installed" in str(device.unavailable("lce"))
        rows = device.measure(files, BenchmarkInput("noise", images, labels, info), BenchmarkSettings(warmup=1, runs=2))
    for row in rows:
        assert (row.device, row.environment["machine"], row.scores["top1"]) == ("ssh://pi@board", "aarch64", 1.0)
        assert "torch" not in row.environment["versions"]
