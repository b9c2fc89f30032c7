from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from bnnedge.benchmarks.memory import peak_memory_bytes
from bnnedge.errors import BenchmarkError, UnknownNameError
from bnnedge.export.graph import Graph, Linear, Node, Reshape, TensorSpec
from bnnedge.export.targets.to_onnx import OnnxTarget

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
    graph = Graph("x", "y", nodes, {name: TensorSpec(shape) for name, shape in shapes.items()})
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
    # The runtime itself, some 50 MB with Python and NumPy, must not be counted.
    assert 0 < small_peak < 30_000_000


@linux_only
def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(BenchmarkError, match=r"measuring memory with onnxruntime failed: .*ExportError"):
        peak_memory_bytes(b"no model", "onnxruntime", [1, 8, 8])


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="onnxruntime"):
        peak_memory_bytes(linear_network(1), "onnxrunning", [1, 8, 8])
