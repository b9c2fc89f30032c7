"""The C++ kernels and both plug-ins on emulated AArch64 cores, with the real AArch64 LiteRT and ONNX Runtime."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bnnedge.benchmarks.bench import open_device
from bnnedge.benchmarks.devices.device import BenchmarkInput, BenchmarkSettings, ModelFile
from bnnedge.data.info import DatasetInfo
from bnnedge.data.preprocessing import Preprocessing
from bnnedge.export.graph import Graph, Reshape, TensorSpec
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


def flattened(graph: Graph, count: int) -> Graph:
    """``graph`` with its output [C, H, W] as a vector of ``count`` numbers."""
    reshape = Reshape(name="flatten", inputs=graph.outputs, output="flat", shape=(count,))
    tensors = {**graph.tensors, "flat": TensorSpec((1, count))}
    return dataclasses.replace(graph, nodes=[*graph.nodes, reshape], tensors=tensors, outputs=("flat",))


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
    logits = expected(graph, images).reshape(len(images), -1)
    write_files(flattened(graph, logits.shape[1]), images, tmp_path)
    # Dividing by powers of two is exact, so the record gives the images as they are.
    record = Preprocessing(33, 11, 11, scale=2.0, mean=(0.0,) * 33, std=(0.5,) * 33)
    info = DatasetInfo("noise", "classification", logits.shape[1], ("a", "b"), record)
    metadata = {"input_shape": [33, 11, 11], **info.to_metadata()}
    files = [
        ModelFile(name, (tmp_path / name).read_bytes(), runtime, metadata)
        for name, runtime in (("net.tflite", "litert+bnnedge"), ("net.onnx", "onnxruntime+bnnedge"))
    ]
    with open_device(f"ssh://pi@board{python}") as device:
        assert [device.unavailable(file.runtime) for file in files] == [None, None]
        assert "larq-compute-engine is not installed" in str(device.unavailable("lce"))
        data = BenchmarkInput("noise", images, logits.argmax(axis=1), info)
        rows = device.measure(files, data, BenchmarkSettings(warmup=1, runs=2))
    for row in rows:
        assert (row.device, row.environment["machine"]) == ("ssh://pi@board", "aarch64")
        assert (row.scores["top1"], row.samples) == (1.0, len(images))
        assert "torch" not in row.environment["versions"]
