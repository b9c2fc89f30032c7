from __future__ import annotations

import gc
import io
import time
from functools import partial

import numpy as np
import pytest
from rich.console import Console

from bnnedge.benchmarks.turns import Contender, Quantiles, WallClock, Work, quantiles, take_turns
from bnnedge.errors import BenchmarkError
from bnnedge.progress import Bar

Log = list[tuple[str, int]]


class FakeTime:
    """Stands in for the clock: time passes only when some work says so."""

    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns


class Counter:
    """Work that notes when it is done, and takes ``duration_ns`` more with every call."""

    def __init__(self, time_source: FakeTime | None = None, duration_ns: int = 0) -> None:
        self.time_source, self.duration_ns, self.calls = time_source, duration_ns, 0
        self.collector_was_on = False

    def __call__(self) -> None:
        self.calls += 1
        self.collector_was_on |= gc.isenabled()
        if self.time_source is not None:
            self.time_source.now_ns += self.calls * self.duration_ns


def logging(name: str, inputs: list[int], log: Log, before: Work | None = None) -> Contender:
    return Contender(name, [partial(log.append, (name, value)) for value in inputs], before)


def test_each_is_warmed_up_and_then_they_take_turns() -> None:
    log: Log = []
    contenders = [logging("a", [0, 1], log), logging("b", [5], log), logging("c", [7, 8, 9], log)]
    seconds = take_turns(contenders, turns=3, warmup=2)
    warm = [("a", 0), ("a", 1), ("b", 5), ("b", 5), ("c", 7), ("c", 8)]
    turns = [("a", 0), ("b", 5), ("c", 7), ("a", 1), ("b", 5), ("c", 8), ("a", 0), ("b", 5), ("c", 9)]
    assert log == warm + turns
    assert [own.shape for own in seconds] == [(3,)] * 3


def test_what_comes_before_a_turn_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeTime()
    monkeypatch.setattr(time, "perf_counter_ns", clock)
    log: Log = []

    def pause() -> None:
        log.append(("pause", 0))
        clock.now_ns += 10**9

    def work() -> None:
        log.append(("work", 0))
        clock.now_ns += 1_000

    (seconds,) = take_turns([Contender("a", [work], pause)], turns=2, warmup=1)
    assert log == [("work", 0), ("pause", 0), ("work", 0), ("pause", 0), ("work", 0)]
    assert seconds.tolist() == [1e-6, 1e-6]


def test_the_seconds_are_those_of_the_turns_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeTime()
    monkeypatch.setattr(time, "perf_counter_ns", clock)
    contenders = [Contender("a", [Counter(clock, 1_000)]), Contender("b", [Counter(clock, 7_000_000)])]
    a, b = take_turns(contenders, turns=4, warmup=2)
    assert (a * 1e9).round().tolist() == [3_000, 4_000, 5_000, 6_000]
    assert (b * 1e9).round().tolist() == [21_000_000, 28_000_000, 35_000_000, 42_000_000]


def test_another_clock_can_be_given() -> None:
    class Slow(WallClock):
        def seconds(self, work: Work) -> float:
            work()
            return 42.0

    work = Counter()
    (seconds,) = take_turns([Contender("a", [work])], turns=3, clock=Slow())
    assert seconds.tolist() == [42.0] * 3
    assert work.calls == 3


def test_real_time_passes_in_seconds() -> None:
    (seconds,) = take_turns([Contender("a", [partial(time.sleep, 0.005)])], turns=5)
    assert (seconds >= 0.005).all()
    assert seconds.min() < 0.5


@pytest.mark.parametrize("was_on", [True, False])
def test_no_garbage_collection_while_measuring_and_afterwards_as_before(was_on: bool) -> None:
    work = Counter()
    try:
        (gc.enable if was_on else gc.disable)()
        take_turns([Contender("a", [work])], turns=2, warmup=1)
        assert gc.isenabled() == was_on
    finally:
        gc.enable()
    assert not work.collector_was_on


@pytest.mark.parametrize("was_on", [True, False])
def test_garbage_collection_is_as_before_after_a_failure(was_on: bool) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    try:
        (gc.enable if was_on else gc.disable)()
        with pytest.raises(ZeroDivisionError):
            take_turns([Contender("a", [broken])], turns=1)
        assert gc.isenabled() == was_on
    finally:
        gc.enable()


def test_progress_names_the_phase() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Bar(console) as bar:
        take_turns([Contender("net.onnx", [Counter()])], turns=7, warmup=3, report=bar)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "warm-up net.onnx" in text
    assert "measuring" in text
    assert "7/7" in text


@pytest.mark.parametrize(("warmup", "turns"), [(-1, 1), (0, 0)])
def test_impossible_counts(warmup: int, turns: int) -> None:
    with pytest.raises(BenchmarkError, match="expected warmup >= 0 and runs >= 1"):
        take_turns([Contender("a", [Counter()])], turns, warmup)


def test_nothing_to_run_on() -> None:
    with pytest.raises(BenchmarkError, match=r"no input to run: net\.onnx"):
        take_turns([Contender("net.onnx", [])], 1)


def test_quantiles_of_known_values() -> None:
    # 0 ... 10 in any order: the q-quantile of eleven equidistant values is the one at 10 q.
    assert quantiles(np.random.default_rng(0).permutation(11)) == Quantiles(2.0, 5.0, 8.0)
    # Between two turns: 1 + 0.2, 1 + 0.5 and 1 + 0.8, exact to the rounding of one interpolation.
    two = quantiles(np.array([2.0, 1.0]))
    assert [two.p20, two.p50, two.p80] == pytest.approx([1.2, 1.5, 1.8], rel=1e-12)
    assert quantiles(np.array([1.5])) == Quantiles(1.5, 1.5, 1.5)
