"""Timing engines against each other: turn by turn, so that whatever the machine does meanwhile hits all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnnedge.benchmarks.ops.engines import Engine, Prepared
from bnnedge.benchmarks.ops.shapes import ConvShape
from bnnedge.benchmarks.result import append_lines
from bnnedge.kernels import native

FORMAT_VERSION = 1
_REST_S = 0.02
"""With several threads, others' helpers go on spinning after their turn; they get this long to fall asleep."""


@dataclass(frozen=True, kw_only=True)
class OpRow:
    """One engine on one shape, and all that is needed to read the numbers later."""

    network: str
    shape: dict[str, Any]
    """The fields of ``ConvShape``."""
    engine: str
    engine_version: str
    threads: int
    turns: int
    calls_per_turn: int
    """Convolutions measured together in one turn."""
    chain: int
    """Of these, how many in one call of the engine."""
    best_us: float
    p20_us: float
    p50_us: float
    """Of the turns' averages, per convolution: from float input to output, packing included."""
    p80_us: float
    gmacs_per_s: float
    """1e9 products a second, at the median."""
    peak_share: float | None
    """Of a loop of the same instructions on registers in the same turns; None if the engine has none."""
    environment: dict[str, Any]

    def to_json(self) -> str:
        """One line without its newline."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, allow_nan=False)


@dataclass
class _Contestant:
    engine: Engine
    prepared: Prepared
    repeats: int
    seconds: list[float]
    peak: str | None
    """The kernel whose yardstick belongs to it."""


def measure(
    network: str, shape: ConvShape, engines: Sequence[Engine], threads: int, turns: int, turn_s: float, environment: Any
) -> list[OpRow]:
    """One row an engine, in order. Raises ``BenchmarkError`` if one of ours gives a wrong result."""
    contestants = []
    for engine in engines:
        check = getattr(engine, "check", None)
        if check is not None:
            check(shape)
        prepared = engine.prepare(shape, threads)
        kernel = getattr(engine, "kernel", None) if check is not None else None
        repeats = max(1, round(turn_s / _seconds(prepared.run, 3)))
        contestants.append(_Contestant(engine, prepared, repeats, [], kernel if _has_peak(kernel) else None))
    peaks: dict[str, list[float]] = {c.peak: [] for c in contestants if c.peak is not None}
    rounds = {kernel: _peak_rounds(kernel, turn_s) for kernel in peaks}
    for _ in range(turns):
        for kernel, rates in peaks.items():
            started = time.perf_counter()
            products = native.peak(rounds[kernel], kernel)
            rates.append(products / (time.perf_counter() - started))
        for contestant in contestants:
            if threads > 1:
                time.sleep(_REST_S)
                contestant.prepared.run()
            seconds = _seconds(contestant.prepared.run, contestant.repeats)
            contestant.seconds.append(seconds / contestant.prepared.calls)
    rates_of = {kernel: float(np.median(rates)) * threads for kernel, rates in peaks.items()}
    return [_row(network, shape, c, threads, turns, rates_of, environment) for c in contestants]


def append(path: Path, rows: Sequence[OpRow]) -> None:
    """Add rows to a JSON lines file. Raises ``BenchmarkError`` if it cannot be written."""
    append_lines(path, [row.to_json() for row in rows])


def _row(
    network: str,
    shape: ConvShape,
    contestant: _Contestant,
    threads: int,
    turns: int,
    peaks: dict[str, float],
    environment: Any,
) -> OpRow:
    p20, p50, p80 = (float(q) for q in np.percentile(contestant.seconds, (20, 50, 80)))
    rate = shape.multiply_adds / p50
    return OpRow(
        network=network,
        shape=asdict(shape),
        engine=contestant.engine.name,
        engine_version=contestant.engine.version(),
        threads=threads,
        turns=turns,
        calls_per_turn=contestant.repeats * contestant.prepared.calls,
        chain=contestant.prepared.calls,
        best_us=min(contestant.seconds) * 1e6,
        p20_us=p20 * 1e6,
        p50_us=p50 * 1e6,
        p80_us=p80 * 1e6,
        gmacs_per_s=rate / 1e9,
        peak_share=None if contestant.peak is None else rate / peaks[contestant.peak],
        environment=environment,
    )


def _seconds(run: Callable[[], object], repeats: int) -> float:
    """Average seconds of one call; the first of a fresh engine is not a measurement."""
    run()
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats


def _has_peak(kernel: str | None) -> bool:
    return kernel is not None and native.peak(1, kernel) > 0


def _peak_rounds(kernel: str, turn_s: float) -> int:
    started = time.perf_counter()
    native.peak(100_000, kernel)
    return max(1, round(100_000 * turn_s / (time.perf_counter() - started)))
