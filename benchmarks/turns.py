"""Measuring contenders in turns: A B C A B C ... This file knows work and clocks, but no files, devices or rows."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bnnedge.errors import BenchmarkError

Work = Callable[[], object]
Seconds = NDArray[np.float64]
"""Seconds of one contender in each turn, [turns]."""
_REDRAW_NS = 250_000_000


class Clock(Protocol):
    """Times one piece of work."""

    def seconds(self, work: Work) -> float:
        """Do ``work`` once and return the seconds that it took."""
        ...


class WallClock:
    """The clock on the wall, for work that is done when its call returns."""

    def seconds(self, work: Work) -> float:
        started = time.perf_counter_ns()
        work()
        return (time.perf_counter_ns() - started) / 1e9


@dataclass(frozen=True)
class Contender:
    """One participant of a comparison."""

    name: str
    works: Sequence[Work]
    """What is timed: turn i does number i modulo their count. They differ in their input only."""
    before: Work | None = None
    """What is done immediately before each timed work, and is not timed."""


@dataclass(frozen=True)
class Quantiles:
    """Quantiles over the turns, in the unit of what they were taken from."""

    p20: float
    p50: float
    p80: float


def quantiles(values: NDArray[Any]) -> Quantiles:
    """The quantiles of ``values`` [turns], interpolated linearly between two turns."""
    p20, p50, p80 = np.quantile(values, (0.2, 0.5, 0.8))
    return Quantiles(float(p20), float(p50), float(p80))


def take_turns(
    contenders: Sequence[Contender],
    turns: int,
    warmup: int = 0,
    clock: Clock | None = None,
    console: Console | None = None,
) -> list[Seconds]:
    """Seconds of every turn by ``clock`` (by default the clock on the wall), [turns] for each contender.

    Each contender first does its work ``warmup`` times in a row, untimed. Then all take turns, so that a change of
    clock rate or of the machine's load meets all of them alike; a ratio between contenders is therefore worth more
    than their times. The price is that each one finds in the caches what the others left there, as in an application
    that does more than infer. Garbage collection is off meanwhile, and the progress bar on ``console`` (by default the
    standard error) is drawn between the turns, not by a thread beside them.

    Raises ``BenchmarkError`` if there is nothing to do.
    """
    if warmup < 0 or turns < 1:
        raise BenchmarkError(f"expected warmup >= 0 and runs >= 1, found {warmup} and {turns}")
    if empty := [contender.name for contender in contenders if not contender.works]:
        raise BenchmarkError(f"no input to run: {', '.join(empty)}")
    clock = clock or WallClock()
    seconds = [np.zeros(turns) for _ in contenders]
    with _progress(console) as progress, _no_garbage_collection():
        for contender in contenders:
            bar = progress.add_task(f"warm-up {contender.name}", total=warmup)
            for i in _drawn(progress, bar, warmup):
                contender.works[i % len(contender.works)]()
        bar = progress.add_task("measuring", total=turns)
        for i in _drawn(progress, bar, turns):
            for contender, own in zip(contenders, seconds, strict=True):
                if contender.before is not None:
                    contender.before()
                own[i] = clock.seconds(contender.works[i % len(contender.works)])
    return seconds


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


def _drawn(progress: Progress, bar: TaskID, count: int) -> Iterator[int]:
    """Yield 0 .. count-1 and redraw the bar at most four times a second, between the iterations."""
    drawn_at = 0
    for i in range(count):
        yield i
        now = time.perf_counter_ns()
        if now - drawn_at > _REDRAW_NS or i == count - 1:
            progress.update(bar, completed=i + 1, refresh=True)
            drawn_at = now


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Switch the collector off, and afterwards on again only if it was on."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
