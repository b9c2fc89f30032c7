"""The page of measured speed: the rows of whole networks in ``benchmarks/results``, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bnnedge.benchmarks.rows import BenchmarkRow, read_rows

INTRODUCTION = """\
# Measured speed

These tables are generated from the benchmark rows in `benchmarks/results`, which
`python -m bnnedge.benchmarks.networks` wrote. Every group of rows was measured in one process, the files taking turns,
so that a change of the clock rate meets all of them alike: compare the rows of one table with each other, and not with
those of another. Times are of one image. The median is the time that half of the runs took at most; the two columns
beside it are the times that 20 % and 80 % of the runs took at most.

Files that are named `twin` hold the same network with ordinary layers, in float32 or in int8. `lce` is Larq Compute
Engine's own interpreter, with its default kernel or the one that is named behind it.
"""


def page(folder: Path) -> str:
    """The whole page, from every ``networks_*.jsonl`` in ``folder``."""
    parts = [INTRODUCTION]
    for path in sorted(folder.glob("networks_*.jsonl")):
        groups: dict[str, list[BenchmarkRow]] = {}
        for row in read_rows(path):
            groups.setdefault(row.started_at, []).append(row)
        machine = next(iter(groups.values()))[0].environment
        parts += [f"## {_machine(machine)}", ""]
        for started_at, rows in groups.items():
            parts += _table(started_at, rows)
    return "\n".join(parts)


def _machine(environment: dict[str, Any]) -> str:
    best = [flag for flag in environment["cpu_flags"] if flag in ("avx2", "avx512f", "amx_int8")]
    return f"{environment['cpu']} ({', '.join(best)})"


def _table(started_at: str, rows: list[BenchmarkRow]) -> list[str]:
    first = rows[0]
    shape = " x ".join(str(size) for size in first.metadata["input_shape"])
    threads = f"{first.threads} thread{'s' if first.threads > 1 else ''}"
    lines = [
        f"{first.metadata['model']}, input {shape}, {threads}, {first.runs} runs, {started_at[:10]}:",
        "",
        "| file | runtime | median, ms | 20 % | 80 % | size, MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        name = f"{row.runtime} {row.runtime_version}"
        times = f"{row.p50_ms:.2f} | {row.p20_ms:.2f} | {row.p80_ms:.2f}"
        lines.append(f"| `{row.file}` | {name} | {times} | {row.file_bytes / 2**20:.2f} |")
    return [*lines, ""]
