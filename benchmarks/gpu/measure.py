"""Contenders in turns on one piece of work, after each of ours has given the right bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bnnedge.benchmarks.gpu.clock import Clock, Work
from bnnedge.benchmarks.gpu.row import GpuRow
from bnnedge.errors import BenchmarkError


@dataclass(frozen=True)
class Contender:
    """One way to do the work."""

    name: str
    work: Work
    check: Callable[[], None] | None = None
    """Raises ``BenchmarkError`` unless the result is exact; ours have one, peers none."""
    modelled_us: float | None = None
    """What the GPU's roofline allows."""


@dataclass(frozen=True)
class Amount:
    """How much one run of the work is."""

    value: float
    unit: str
    """As in ``GpuRow``."""


def measure(
    benchmark: str,
    case: str,
    amount: Amount,
    contenders: Sequence[Contender],
    clock: Clock,
    turns: int,
    environment: dict[str, Any],
    leave_out: Callable[[str], None],
) -> list[GpuRow]:
    """One row a contender, in order; a peer that cannot do the work goes, with the reason, to ``leave_out``.

    Raises ``BenchmarkError``, before anything is timed, if one of ours gives a wrong result.
    """
    for contender in contenders:
        if contender.check is not None:
            contender.check()
    ready = []
    for contender in contenders:
        try:
            ready.append((contender, clock.record(contender.work)))
        except (RuntimeError, ValueError) as error:
            if contender.check is not None:
                raise
            leave_out(f"{case}: without {contender.name}: {' '.join(str(error).split())[:200]}")
    seconds: list[list[float]] = [[] for _ in ready]
    for _ in range(turns):
        for (_, work), times in zip(ready, seconds, strict=True):
            times.append(clock.seconds(work))
    rows = []
    for (contender, _), times in zip(ready, seconds, strict=True):
        p20, p50, p80 = (float(q) * 1e6 for q in np.quantile(times, (0.2, 0.5, 0.8)))
        rows.append(
            GpuRow(
                benchmark=benchmark,
                case=case,
                contender=contender.name,
                turns=turns,
                p20_us=p20,
                p50_us=p50,
                p80_us=p80,
                amount=amount.value,
                unit=amount.unit,
                modelled_us=contender.modelled_us,
                environment=environment,
            )
        )
    return rows


def require_equal(what: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise ``BenchmarkError`` unless both hold the same numbers: no time is taken of wrong results."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise BenchmarkError(
            f"{what}: expected {expected.dtype} {tuple(expected.shape)}, found {found.dtype} {tuple(found.shape)}"
        )
    wrong = int((found != expected).sum())
    if wrong:
        raise BenchmarkError(
            f"{what}: {wrong} of {expected.numel()} numbers differ from the reference's; "
            "no time is taken of wrong results"
        )
