from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnnedge.benchmarks import memory
from bnnedge.benchmarks.memory import peak_memory_bytes
from bnnedge.errors import BenchmarkError, UnknownNameError
from bnnedge.export.graph import Graph, Linear, Node, Reshape, TensorSpec
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.runtimes.runtime import Images, Runtime, Session
from bnnedge.export.targets import TARGETS
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
    # The runtime's libraries, more than 10 MB each, must not be counted.
    assert small_peak < 4_000_000


class SpikySession(Session):
    """Does nothing."""

    def prepare(self, images: Images) -> Any:
        return images

    def invoke(self, prepared: Any) -> NDArray[np.float32]:
        return np.zeros((1, 1), np.float32)


class Spiky(Runtime):
    """Opening a file takes ``spike`` bytes for a moment."""

    name = "onnxruntime"
    spike = 0

    @classmethod
    def unavailable(cls) -> str | None:
        return None

    @classmethod
    def version(cls) -> str:
        return "0"

    @classmethod
    def open(cls, data: bytes, threads: int = 1) -> Session:
        assert np.ones(max(cls.spike, 1), np.uint8).all()
        return SpikySession()


@linux_only
def test_it_is_the_peak_and_that_of_this_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(linear_network(1))
    monkeypatch.setattr(RUNTIMES, "load", lambda name: Spiky)

    def spike_before_the_file(name: str) -> bytes:
        assert np.ones(100_000_000, np.uint8).all()
        return b""

    monkeypatch.setattr(memory, "_smallest_file", spike_before_the_file)
    assert memory._measure_here(file, "onnxruntime", [1, 8, 8], 1) < 10_000_000
    monkeypatch.setattr(memory, "_smallest_file", lambda name: b"")
    monkeypatch.setattr(Spiky, "spike", 50_000_000)
    assert 49_000_000 < memory._measure_here(file, "onnxruntime", [1, 8, 8], 1) < 60_000_000


@linux_only
@pytest.mark.parametrize("runtime", list(RUNTIMES))
def test_every_runtime(runtime: str, digits_classifier: tuple[Graph, NDArray[np.float64]]) -> None:
    if why := RUNTIMES.load(runtime).unavailable():
        pytest.skip(why)
    targets = (TARGETS.load(name)() for name in TARGETS)
    data = next(t for t in targets if runtime in t.runtimes).write(digits_classifier[0])
    peak = peak_memory_bytes(data, runtime, [1, 8, 8])
    assert peak is not None
    assert len(data) < peak < 4_000_000


@linux_only
def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(BenchmarkError, match=r"measuring memory with onnxruntime failed: .*ExportError"):
        peak_memory_bytes(b"no model", "onnxruntime", [1, 8, 8])


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="onnxruntime"):
        peak_memory_bytes(linear_network(1), "onnxrunning", [1, 8, 8])
