from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bnnedge.benchmarks.memory import peak_memory_bytes
from bnnedge.errors import BenchmarkError, UnknownNameError
from bnnedge.export.graph import Graph, Linear, Node, Reshape, TensorSpec
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.targets import TARGETS
from bnnedge.export.targets.onnx.target import OnnxTarget

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")


def linear_network(hidden: int) -> bytes:
    """[1, 8, 8] -> 64 -> ``hidden`` -> 1, as an ONNX file of about 260 * ``hidden`` bytes."""
    rng = np.random.default_rng(0)
    nodes: list[Node] = [
        Reshape(name="flatten", inputs=("x",), output="flat", shape=(64,)),
        Linear(name="a", inputs=("flat",), output="h", weight=rng.standard_normal((hidden, 64)), bias=np.ones(hidden)),
        Linear(name="b", inputs=("h",), output="y", weight=rng.standard_normal((1, hidden)), bias=np.ones(1)),
    ]
    shapes = {"x": (1, 1, 8, 8), "flat": (1, 64), "h": (1, hidden), "y": (1, 1)}
    graph = Graph(("x",), ("y",), nodes, {name: TensorSpec(shape) for name, shape in shapes.items()})
    return OnnxTarget().write(replace(graph, metadata={"input_shape": [1, 8, 8]}))


@linux_only
def test_a_larger_file_takes_more_by_its_weights_at_least() -> None:
    small, large = linear_network(1), linear_network(160_000)
    small_peak = peak_memory_bytes(small, "onnxruntime", [1, 8, 8])
    large_peak = peak_memory_bytes(large, "onnxruntime", [1, 8, 8])
    assert small_peak is not None
    assert large_peak is not None
    assert len(large) > 40_000_000
    # The file's bytes and the runtime's weights are both there while it loads; a handful of copies would be a bug.
    assert 2 * len(large) < large_peak - small_peak < 8 * len(large)
    # The runtime's libraries, more than 10 MB each, must not be counted.
    assert small_peak < 4_000_000


SPIKY = """
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from bnnedge.benchmarks import memory

def spike(size):
    assert np.ones(size, np.uint8).all()
    return b""

def open_file(data, threads):
    spike(int(data) if data else 1)
    return SimpleNamespace(run=lambda images: images, prepare=lambda images: images, invoke=lambda images: images)

memory.RUNTIMES = SimpleNamespace(load=lambda name: SimpleNamespace(unavailable=lambda: None, open=open_file))
memory._smallest_file = lambda name: spike(int(sys.argv[2]))
print(memory._measure_here(Path(sys.argv[1]), "fake", [1, 8, 8], 1))
"""
"""A runtime that takes as many bytes for a moment as the file says, in a process of its own: in the one that runs the
tests, the system may take back memory that has nothing to do with them."""


@linux_only
@pytest.mark.parametrize(("earlier", "spike"), [(100_000_000, 1), (1, 50_000_000)])
def test_it_is_the_peak_and_that_of_this_file_alone(tmp_path: Path, earlier: int, spike: int) -> None:
    file = tmp_path / "net.onnx"
    file.write_text(str(spike))
    command = [sys.executable, "-c", SPIKY, str(file), str(earlier)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60)
    # Page granularity and what the allocator keeps; half the spike would be a wrong baseline.
    assert 0.98 * spike <= int(done.stdout) < spike + 10_000_000 or (spike == 1 and int(done.stdout) < 10_000_000)


@linux_only
@pytest.mark.parametrize("runtime", list(RUNTIMES))
def test_every_runtime(runtime: str) -> None:
    """The file has 4 MiB, since the kernel's counters are not exact, and may fall behind those of the baseline."""
    if why := RUNTIMES.load(runtime).unavailable():
        pytest.skip(why)
    weight = np.ones((2**14, 64))
    node = Linear(name="fc", inputs=("x",), output="y", weight=weight, bias=weight[:, 0])
    tensors = {"x": TensorSpec((1, 64)), "y": TensorSpec((1, 2**14))}
    targets = (TARGETS.load(name)() for name in TARGETS)
    target = next(t for t in targets if runtime in t.runtimes)
    data = target.write(Graph(("x",), ("y",), [node], tensors, {"input_shape": [64]}))
    peak = peak_memory_bytes(data, runtime, [64])
    assert peak is not None
    assert len(data) - 1_000_000 < peak < 4 * len(data) + 4_000_000


@linux_only
def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(BenchmarkError, match=r"measuring memory with onnxruntime failed: .*ExportError"):
        peak_memory_bytes(b"no model", "onnxruntime", [1, 8, 8])


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="onnxruntime"):
        peak_memory_bytes(linear_network(1), "onnxrunning", [1, 8, 8])
