"""The row of one engine on one convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bnnedge.benchmarks.rows import Row


@dataclass(frozen=True, kw_only=True)
class OpRow(Row):
    """One engine on one shape.

    Times are for one convolution, averaged over the calls of a turn. It goes from float input to float output, so that
    packing the input is part of it.
    """

    network: str
    """Name of the table of shapes."""
    shape: dict[str, Any]
    """The fields of ``ConvShape``."""
    engine: str
    engine_version: str
    threads: int
    turns: int
    calls_per_turn: int
    """Convolutions measured together in one turn."""
    chain: int
    """How many of them the engine does in one call."""
    best_us: float
    """The shortest of the turns."""
    p20_us: float
    p50_us: float
    p80_us: float
    gmacs_per_s: float
    """1e9 multiply-adds a second, at the median."""
    peak_share: float | None
    """The rate as a share of what a loop of the same instructions on registers reaches in the same turns; None if the
    engine has no such loop."""
