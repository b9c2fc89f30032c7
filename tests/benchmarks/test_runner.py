from __future__ import annotations

import gc
import io
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from bnnedge.benchmarks.runner import Contender, LatencyQuantiles, measure_latencies, quantiles
from bnnedge.errors import BenchmarkError
from bnnedge.export.runtimes.runtime import Images, Session

Log = list[tuple[str, Any]]


class Clock:
    """Stands in for the clock: time passes only when a session says so."""

    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns


class LoggingSession(Session):
    """Notes who ran on what, and takes ``duration_ns`` more with every run."""

    def __init__(self, name: str, log: Log, clock: Clock | None = None, duration_ns: int = 0) -> None:
        self.name, self.log, self.clock, self.duration_ns, self.calls = name, log, clock, duration_ns, 0
        self.gc_was_on = False

    def prepare(self, images: Images) -> Any:
        return images

    def invoke(self, prepared: Any) -> NDArray[np.float32]:
        self.calls += 1
        self.log.append((self.name, prepared))
        self.gc_was_on |= gc.isenabled()
        if self.clock is not None:
            self.clock.now_ns += self.calls * self.duration_ns
        return np.zeros((1, 1), np.float32)


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_each_is_warmed_up_and_then_they_take_turns() -> None:
    log: Log = []
    contenders = [
        Contender("a", LoggingSession("a", log), [0, 1]),
        Contender("b", LoggingSession("b", log), [5]),
        Contender("c", LoggingSession("c", log), [7, 8, 9]),
    ]
    latencies = measure_latencies(contenders, warmup=2, runs=3, console=quiet())
    warm = [("a", 0), ("a", 1), ("b", 5), ("b", 5), ("c", 7), ("c", 8)]
    turns = [("a", 0), ("b", 5), ("c", 7), ("a", 1), ("b", 5), ("c", 8), ("a", 0), ("b", 5), ("c", 9)]
    assert log == warm + turns
    assert [latency.shape for latency in latencies] == [(3,)] * 3


def test_latencies_are_those_of_the_measured_runs_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter_ns", clock)
    contenders = [
        Contender("a", LoggingSession("a", [], clock, 1_000), [0]),
        Contender("b", LoggingSession("b", [], clock, 7_000_000), [0]),
    ]
    a, b = measure_latencies(contenders, warmup=2, runs=4, console=quiet())
    assert a.tolist() == [3_000, 4_000, 5_000, 6_000]
    assert b.tolist() == [21_000_000, 28_000_000, 35_000_000, 42_000_000]


def test_real_time_passes_in_nanoseconds() -> None:
    class Sleeper(LoggingSession):
        def invoke(self, prepared: Any) -> NDArray[np.float32]:
            time.sleep(0.005)
            return super().invoke(prepared)

    (latency,) = measure_latencies([Contender("a", Sleeper("a", []), [0])], warmup=0, runs=5, console=quiet())
    assert (latency >= 5_000_000).all()
    assert latency.min() < 500_000_000


def test_no_garbage_collection_while_measuring_and_again_afterwards() -> None:
    session = LoggingSession("a", [])
    assert gc.isenabled()
    measure_latencies([Contender("a", session, [0])], warmup=1, runs=2, console=quiet())
    assert not session.gc_was_on
    assert gc.isenabled()


def test_garbage_collection_returns_after_a_failure() -> None:
    class Broken(LoggingSession):
        def invoke(self, prepared: Any) -> NDArray[np.float32]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure_latencies([Contender("a", Broken("a", []), [0])], warmup=0, runs=1, console=quiet())
    assert gc.isenabled()


def test_progress_names_the_phase() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    measure_latencies([Contender("net.onnx", LoggingSession("a", []), [0])], warmup=3, runs=7, console=console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "warm-up net.onnx" in text
    assert "measuring" in text
    assert "7/7" in text


@pytest.mark.parametrize(("warmup", "runs"), [(-1, 1), (0, 0)])
def test_impossible_counts(warmup: int, runs: int) -> None:
    with pytest.raises(BenchmarkError, match="expected warmup >= 0 and runs >= 1"):
        measure_latencies([Contender("a", LoggingSession("a", []), [0])], warmup, runs, quiet())


def test_nothing_to_run_on() -> None:
    with pytest.raises(BenchmarkError, match=r"no input to run: net\.onnx"):
        measure_latencies([Contender("net.onnx", LoggingSession("a", []), [])], 0, 1, quiet())


def test_quantiles_of_known_latencies() -> None:
    # 0 ... 10 ms in any order: the q-quantile of eleven equidistant values is the one at 10 q.
    latencies = np.random.default_rng(0).permutation(11) * 1_000_000
    assert quantiles(latencies) == LatencyQuantiles(2.0, 5.0, 8.0)
    # Between two runs: 1 + 0.2, 1 + 0.5 and 1 + 0.8 ms, exact to the rounding of one interpolation.
    two = quantiles(np.array([2_000_000, 1_000_000]))
    assert [two.p20_ms, two.p50_ms, two.p80_ms] == pytest.approx([1.2, 1.5, 1.8], rel=1e-12)
    assert quantiles(np.array([1_500])) == LatencyQuantiles(0.0015, 0.0015, 0.0015)
