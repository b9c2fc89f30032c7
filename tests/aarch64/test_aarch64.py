"""The C++ kernels and both plug-ins on emulated AArch64 cores, with the real AArch64 LiteRT and ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnnedge.export import graph as g
from bnnedge.export.targets.to_lce import LceTarget
from bnnedge.export.targets.to_onnx import OnnxTarget
from bnnedge.kernels import reference
from bnnedge.kernels.layout import pack

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
    fastest = "neon_dot" if "neon_dot" in CORES[core] else "portable"
    assert stems.startswith(f"{CORES[core][0]}: stem {fastest}\n")


@pytest.mark.slow
def test_python_tests_of_the_kernels(stage: Path, emulated_python: Path, run: Run) -> None:
    """Those that need no torch: geometry, transforms, packing and pooling of every kernel."""
    tests = REPOSITORY / "tests" / "kernels"
    pytest_alone = ["-c", os.devnull, "--rootdir", str(tests), "--noconftest", "-p", "no:cacheprovider"]
    arguments = [*pytest_alone, "--import-mode=importlib", "-q", "-x", *(str(tests / name) for name in KERNEL_TESTS)]
    output = run(emulated_python, "-P", "-m", "pytest", *arguments, BNNEDGE_PYTHONPATH=str(stage))
    assert "passed" in output and "skipped" not in output


def network(rng: np.random.Generator) -> tuple[g.Graph, NDArray[np.float32]]:
    """Signs -> strided convolution to bits -> zero-padded convolution to floats; and its images [2, 33, 11, 11].

    The scales are powers of two and the biases multiples of 1/8: no arithmetic rounds, whatever its order.
    """
    images = rng.standard_normal((2, 33, 11, 11)).astype(np.float32)
    images[rng.random(images.shape) < 0.1] = -0.0
    first = g.BinaryConv2d(
        name="first",
        inputs=("signs",),
        output="bits",
        weight=rng.choice(np.array([-1, 1], np.int8), (40, 33, 3, 3)),
        multiplier=np.ones(40),
        bias=np.zeros(40),
        threshold=rng.integers(-30, 30, 40).astype(np.int32),
        stride=(2, 2),
    )
    second = g.BinaryConv2d(
        name="second",
        inputs=("bits",),
        output="sums",
        weight=rng.choice(np.array([-1, 1], np.int8), (21, 40, 3, 3)),
        multiplier=rng.choice([0.5, -0.25, 2.0], 21),
        bias=rng.integers(-40, 40, 21) / 8,
        padding=(1, 1),
    )
    tensors = {
        "image": g.TensorSpec((1, 33, 11, 11)),
        "signs": g.TensorSpec((1, 33, 11, 11), "bits"),
        "bits": g.TensorSpec((1, 40, 5, 5), "bits"),
        "sums": g.TensorSpec((1, 21, 5, 5)),
    }
    nodes: list[g.Node] = [g.Binarize(name="sign", inputs=("image",), output="signs"), first, second]
    return g.Graph(input="image", output="sums", nodes=nodes, tensors=tensors), images


def expected(graph: g.Graph, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same by the reference kernels, NCHW."""
    _, first, second = graph.nodes
    assert isinstance(first, g.BinaryConv2d) and first.threshold is not None and isinstance(second, g.BinaryConv2d)

    def sums(words: NDArray[np.uint32], node: g.BinaryConv2d) -> NDArray[np.int32]:
        filters = pack(node.weight.transpose(0, 2, 3, 1))
        return reference.bconv2d(words, filters, node.weight.shape[1], stride=node.stride, padding=node.padding)

    hidden = reference.threshold(sums(pack(images.transpose(0, 2, 3, 1)), first), first.threshold)
    y: NDArray[Any] = sums(hidden, second) * second.multiplier + second.bias
    return y.transpose(0, 3, 1, 2).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("package", ["stage", "wheel"])
def test_plugins_in_the_stock_runtimes(
    package: str, request: pytest.FixtureRequest, emulated_python: Path, tmp_path: Path, run: Run, core: str
) -> None:
    graph, images = network(np.random.default_rng(11))
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "net.tflite").write_bytes(LceTarget().write(graph))
    (tmp_path / "net.onnx").write_bytes(OnnxTarget().write(graph))
    script = Path(__file__).with_name("run_plugins.py")
    where = str(request.getfixturevalue(package))
    output = run(emulated_python, "-P", script, tmp_path, BNNEDGE_PYTHONPATH=where, BNNEDGE_QEMU_CPU=core)
    assert output.split() == [*CORES[core], *ALWAYS]
    wanted = expected(graph, images)
    for runtime in ("litert", "onnxruntime"):
        assert np.array_equal(np.load(tmp_path / f"{runtime}.npy"), wanted), runtime
