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

from bnnedge.errors import BenchmarkError
from bnnedge.progress import Report, counted

Work = Callable[[], object]
Seconds = NDArray[np.float64]
"""Seconds of one contender in each turn, [turns]."""


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
    report: Report | None = None,
) -> list[Seconds]:
    """Seconds of every turn by ``clock`` (by default the clock on the wall), [turns] for each contender.

    Each contender first does its work ``warmup`` times in a row, untimed. Then all take turns, so that a change of
    clock rate or of the machine's load meets all of them alike; a ratio between contenders is therefore worth more
    than their times. The price is that each one finds in the caches what the others left there, as in an application
    that does more than infer. Garbage collection is off meanwhile, and progress goes to ``report`` between the turns.

    Raises ``BenchmarkError`` if there is nothing to do.
    """
    if warmup < 0 or turns < 1:
        raise BenchmarkError(f"expected warmup >= 0 and runs >= 1, found {warmup} and {turns}")
    if empty := [contender.name for contender in contenders if not contender.works]:
        raise BenchmarkError(f"no input to run: {', '.join(empty)}")
    clock = clock or WallClock()
    seconds = [np.zeros(turns) for _ in contenders]
    with _no_garbage_collection():
        for contender in contenders:
            for i in counted(warmup, f"warm-up {contender.name}", report):
                contender.works[i % len(contender.works)]()
        for i in counted(turns, "measuring", report):
            for contender, own in zip(contenders, seconds, strict=True):
                if contender.before is not None:
                    contender.before()
                own[i] = clock.seconds(contender.works[i % len(contender.works)])
    return seconds


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
