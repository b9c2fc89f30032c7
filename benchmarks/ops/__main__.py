"""``python -m bnnedge.benchmarks.ops``: a table of microseconds, and a JSON line a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bnnedge.benchmarks.environment import read_environment
from bnnedge.benchmarks.ops.engine import Engine
from bnnedge.benchmarks.ops.engines import all_engines
from bnnedge.benchmarks.ops.measure import measure
from bnnedge.benchmarks.ops.row import OpRow
from bnnedge.benchmarks.ops.shapes import networks, read_shapes
from bnnedge.benchmarks.rows import append_rows, check_appendable
from bnnedge.errors import BenchmarkError, BnnedgeError


def main(
    network: Annotated[
        list[str] | None, typer.Option(help="Table of shapes, several times for several; all if left out.")
    ] = None,
    engine: Annotated[list[str] | None, typer.Option(help="Engine by name; all that run here if left out.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    turns: Annotated[int, typer.Option(min=1, help="Times that every engine has its turn.")] = 21,
    turn_ms: Annotated[float, typer.Option(min=0.1, help="About how long one turn lasts.")] = 5.0,
    json: Annotated[Path | None, typer.Option(help="JSON lines file to add to.")] = None,
) -> None:
    """Time one binary convolution, from float input to float output, against other engines in the same run."""
    console, notes = Console(), Console(stderr=True)
    try:
        engines = choose(engine, notes)
        if json is not None:
            check_appendable(json, OpRow)
        environment = asdict(read_environment())
        for name in network or networks():
            rows = []
            for shape in read_shapes(name):
                measured = measure(name, shape, engines, threads, turns, turn_ms / 1000, environment, notes)
                if json is not None:
                    append_rows(json, measured)
                rows.append(measured)
            console.print(table(name, rows, threads))
    except BnnedgeError as error:
        notes.print(f"[red]error:[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


def choose(names: Sequence[str] | None, console: Console) -> list[Engine]:
    """The engines called ``names``, or all that run here; ``console`` says which are left out and why.

    Raises ``BenchmarkError`` for a name that is unknown or cannot run here.
    """
    known = all_engines()
    if names:
        by_name = {engine.name: engine for engine in known}
        for name in names:
            if name not in by_name:
                raise BenchmarkError(f"unknown engine {name!r}; known: {', '.join(by_name)}")
            if reason := by_name[name].unavailable():
                raise BenchmarkError(f"{name} cannot run here: {reason}")
        return [by_name[name] for name in names]
    for engine in known:
        if reason := engine.unavailable():
            console.print(f"without {engine.name}: {reason}", highlight=False, soft_wrap=True)
    return [engine for engine in known if not engine.unavailable()]


def table(network: str, shapes: Sequence[Sequence[OpRow]], threads: int) -> Table:
    """Microseconds of each engine, and its time as a multiple of the first engine's."""
    result = Table(title=f"{network}, {threads} thread{'s' if threads > 1 else ''}")
    for column in ("shape", "engine"):
        result.add_column(column, no_wrap=True)
    for column in ("us", "times", "GMAC/s", "of peak"):
        result.add_column(column, justify="right", no_wrap=True)
    for rows in shapes:
        for i, row in enumerate(rows):
            share = "" if row.peak_share is None else f"{row.peak_share:.2f}"
            times = f"{row.p50_us / rows[0].p50_us:.2f}"
            numbers = (f"{row.p50_us:.1f}", times, f"{row.gmacs_per_s:.0f}", share)
            result.add_row(row.shape["name"] if i == 0 else "", row.engine, *numbers, end_section=i == len(rows) - 1)
    return result


if __name__ == "__main__":
    typer.run(main)
