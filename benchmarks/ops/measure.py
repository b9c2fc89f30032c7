"""Timing engines against each other on one convolution."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console

from bnnedge.benchmarks.ops.engine import Engine, Prepared
from bnnedge.benchmarks.ops.row import OpRow
from bnnedge.benchmarks.ops.shapes import ConvShape
from bnnedge.benchmarks.turns import Contender, Seconds, Work, quantiles, take_turns
from bnnedge.kernels import native
from bnnedge.progress import Bar

_REST_S = 0.02
"""The helper threads of another engine go on spinning after its turn; they get this long to fall asleep."""
_PEAK_SAMPLE = 100_000
"""Rounds of a kernel's loop on registers whose time says how many rounds fill a turn."""


@dataclass(frozen=True)
class _Entry:
    """An engine that is ready to run."""

    engine: Engine
    prepared: Prepared
    repeats: int
    """Calls in one turn."""
    kernel: str | None
    """The kernel of ours whose loop on registers its rate is compared with; None if there is none."""

    def contender(self, threads: int) -> Contender:
        run = self.prepared.run

        def before() -> None:
            if threads > 1:
                time.sleep(_REST_S)
                run()  # wakes the engine's own threads
            run()

        return Contender(self.engine.name, [_repeated(run, self.repeats)], before)


@dataclass(frozen=True)
class _Peak:
    """A kernel's inner loop on registers alone: the rate that its convolution could reach at most."""

    kernel: str
    rounds: int
    multiply_adds: int

    @classmethod
    def of(cls, kernel: str, turn_s: float) -> _Peak:
        started = time.perf_counter()
        native.peak(_PEAK_SAMPLE, kernel)
        rounds = max(1, round(_PEAK_SAMPLE * turn_s / (time.perf_counter() - started)))
        return cls(kernel, rounds, native.peak(rounds, kernel))

    def contender(self) -> Contender:
        return Contender(f"peak of {self.kernel}", [partial(native.peak, self.rounds, self.kernel)])


def measure(
    network: str,
    shape: ConvShape,
    engines: Sequence[Engine],
    threads: int,
    turns: int,
    turn_s: float,
    environment: dict[str, Any],
    console: Console | None = None,
) -> list[OpRow]:
    """One row an engine, in order; each turn takes about ``turn_s`` seconds.

    Raises ``BenchmarkError`` if one of ours gives a wrong result.
    """
    entries = [_prepare(engine, shape, threads, turn_s) for engine in engines]
    peaks = [_Peak.of(kernel, turn_s) for kernel in dict.fromkeys(e.kernel for e in entries) if kernel is not None]
    contenders = [*(peak.contender() for peak in peaks), *(entry.contender(threads) for entry in entries)]
    with Bar(console) as bar:
        seconds = take_turns(contenders, turns, report=bar)
    peak_rates = {
        peak.kernel: float(np.median(peak.multiply_adds / own)) * threads
        for peak, own in zip(peaks, seconds[: len(peaks)], strict=True)
    }
    return [
        _row(network, shape, entry, own, threads, peak_rates, environment)
        for entry, own in zip(entries, seconds[len(peaks) :], strict=True)
    ]


def _prepare(engine: Engine, shape: ConvShape, threads: int, turn_s: float) -> _Entry:
    engine.check(shape)
    prepared = engine.prepare(shape, threads)
    prepared.run()
    started = time.perf_counter()
    _repeated(prepared.run, 3)()
    repeats = max(1, round(3 * turn_s / (time.perf_counter() - started)))
    kernel = engine.native_kernel
    has_peak = kernel is not None and native.peak(1, kernel) > 0
    return _Entry(engine, prepared, repeats, kernel if has_peak else None)


def _repeated(run: Callable[[], object], repeats: int) -> Work:
    def work() -> None:
        for _ in range(repeats):
            run()

    return work


def _row(
    network: str,
    shape: ConvShape,
    entry: _Entry,
    seconds: Seconds,
    threads: int,
    peak_rates: dict[str, float],
    environment: dict[str, Any],
) -> OpRow:
    calls = entry.repeats * entry.prepared.calls
    us = quantiles(seconds * 1e6 / calls)
    rate = shape.multiply_adds / us.p50 * 1e6
    return OpRow(
        network=network,
        shape=asdict(shape),
        engine=entry.engine.name,
        engine_version=entry.engine.version(),
        threads=threads,
        turns=len(seconds),
        calls_per_turn=calls,
        chain=entry.prepared.calls,
        best_us=float(seconds.min()) * 1e6 / calls,
        p20_us=us.p20,
        p50_us=us.p50,
        p80_us=us.p80,
        gmacs_per_s=rate / 1e9,
        peak_share=None if entry.kernel is None else rate / peak_rates[entry.kernel],
        environment=environment,
    )
