"""Timing. Knows sessions and a clock, no files and no devices."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bnnedge.errors import BenchmarkError
from bnnedge.export.runtimes.runtime import Session

_REFRESH_NS = 250_000_000


@dataclass(frozen=True)
class Contender:
    """One session in a comparison and what it is fed."""

    label: str
    session: Session
    inputs: Sequence[Any]
    """What ``session.prepare`` returned; run i takes number i modulo their count."""


@dataclass(frozen=True)
class LatencyQuantiles:
    """Quantiles of the measured runs, in milliseconds."""

    p20_ms: float
    p50_ms: float
    p80_ms: float


def quantiles(latencies_ns: NDArray[np.int64]) -> LatencyQuantiles:
    """Quantiles of latencies [runs] in nanoseconds; between two runs they are interpolated linearly."""
    p20, p50, p80 = np.quantile(latencies_ns, (0.2, 0.5, 0.8)) / 1e6
    return LatencyQuantiles(float(p20), float(p50), float(p80))


def measure_latencies(
    contenders: Sequence[Contender], warmup: int, runs: int, console: Console | None = None
) -> list[NDArray[np.int64]]:
    """Wall-clock nanoseconds of every measured run, [runs] for each contender.

    Each contender is first run ``warmup`` times in a row. Then they take turns, A B C A B C ..., so that a change of
    clock rate or of the machine's load meets all of them alike; a ratio between contenders is worth more than the
    latencies. The price: each starts with caches that the others have used, as in an application that does more than
    infer. Garbage collection is off meanwhile, and progress is drawn between runs, not by a thread beside them.

    Raises ``BenchmarkError`` if there is nothing to run.
    """
    if warmup < 0 or runs < 1:
        raise BenchmarkError(f"expected warmup >= 0 and runs >= 1, found {warmup} and {runs}")
    if empty := [c.label for c in contenders if not c.inputs]:
        raise BenchmarkError(f"no input to run: {', '.join(empty)}")
    latencies = [np.zeros(runs, np.int64) for _ in contenders]
    with _progress(console) as progress, _no_garbage_collection():
        for contender in contenders:
            task = progress.add_task(f"warm-up {contender.label}", total=warmup)
            for i in _drawn(progress, task, warmup):
                contender.session.invoke(contender.inputs[i % len(contender.inputs)])
        task = progress.add_task("measuring", total=runs)
        for i in _drawn(progress, task, runs):
            for contender, out in zip(contenders, latencies, strict=True):
                out[i] = _time_ns(contender.session, contender.inputs[i % len(contender.inputs)])
    return latencies


def _time_ns(session: Session, prepared: Any) -> int:
    start = time.perf_counter_ns()
    session.invoke(prepared)
    return time.perf_counter_ns() - start


def _progress(console: Console | None) -> Progress:
    console = console or Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
        transient=True,
        disable=not console.is_terminal,
    )


def _drawn(progress: Progress, task: TaskID, count: int) -> Iterator[int]:
    """Yield 0 .. count-1 and move the bar at most four times a second, between the iterations."""
    drawn_at = 0
    for i in range(count):
        yield i
        now = time.perf_counter_ns()
        if now - drawn_at > _REFRESH_NS or i == count - 1:
            progress.update(task, completed=i + 1, refresh=True)
            drawn_at = now


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
