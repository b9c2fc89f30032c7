"""Implementations of one piece of work in turns, after each of ours has given the right bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from bnnedge.benchmarks.gpu.clock import DeviceClock
from bnnedge.benchmarks.gpu.row import GpuRow
from bnnedge.benchmarks.turns import Contender, Seconds, Work, quantiles, take_turns
from bnnedge.errors import BenchmarkError
from bnnedge.progress import Bar


@dataclass(frozen=True)
class Implementation:
    """One way to do the work."""

    name: str
    work: Work
    check: Callable[[], None] | None = None
    """Raises ``BenchmarkError`` unless the result is exact. Ours have one; None marks a peer."""
    modelled_us: float | None = None
    """The time that the GPU's roofline allows, in microseconds."""


@dataclass(frozen=True)
class Amount:
    """How much there is to do in one run of the work."""

    value: float
    unit: str
    """The unit of ``value``, as in ``GpuRow``."""


@dataclass(frozen=True)
class Case:
    """One piece of work and everybody who does it."""

    benchmark: str
    """gemm, conv, pack or step."""
    name: str
    """What is computed, such as ``8192 x 8192 x 8192`` or the name of a layer."""
    amount: Amount
    implementations: Sequence[Implementation]


def measure(
    case: Case, clock: DeviceClock, turns: int, environment: dict[str, Any], notes: Console | None = None
) -> list[GpuRow]:
    """One row an implementation, in order; a peer that cannot do the work is left out, and ``notes`` says why.

    Raises ``BenchmarkError``, before anything is timed, if one of ours gives a wrong result.
    """
    notes = notes or Console(stderr=True)
    for implementation in case.implementations:
        if implementation.check is not None:
            implementation.check()
    ready: list[tuple[Implementation, Work]] = []
    for implementation in case.implementations:
        try:
            ready.append((implementation, clock.record(implementation.work)))
        except (RuntimeError, ValueError) as error:
            if implementation.check is not None:
                raise
            reason = " ".join(str(error).split())[:200]
            notes.print(f"{case.name}: without {implementation.name}: {reason}", markup=False, soft_wrap=True)
    contenders = [Contender(implementation.name, [work]) for implementation, work in ready]
    with Bar(notes) as bar:
        measured = take_turns(contenders, turns, clock=clock, report=bar)
    return [
        _row(case, implementation, seconds, environment)
        for (implementation, _), seconds in zip(ready, measured, strict=True)
    ]


def _row(case: Case, implementation: Implementation, seconds: Seconds, environment: dict[str, Any]) -> GpuRow:
    us = quantiles(seconds * 1e6)
    return GpuRow(
        benchmark=case.benchmark,
        case=case.name,
        contender=implementation.name,
        turns=len(seconds),
        p20_us=us.p20,
        p50_us=us.p50,
        p80_us=us.p80,
        amount=case.amount.value,
        unit=case.amount.unit,
        modelled_us=implementation.modelled_us,
        environment=environment,
    )


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
