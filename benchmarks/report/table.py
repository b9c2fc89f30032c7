"""Rows to a table in the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from bnnedge.benchmarks.report.scores import first_score, header, labelled, number
from bnnedge.benchmarks.rows import BenchmarkRow
from bnnedge.errors import printable

_MIB = 2**20
_MOST_VALUES = 3
"""Most values of one thing in the line about the machine."""


def comparison_table(rows: Sequence[BenchmarkRow]) -> Table:
    """One line a row, 80 columns wide; ``x`` is the multiple of the first row's median latency or file size."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        caption=Text(machine_line(rows), style="table.caption"),
        caption_justify="left",
    )
    score_header, scores = score_column(rows)
    table.add_column("file\nruntime", overflow="fold", min_width=20)
    for name in ("p20\nms", "p50\nms", "p80\nms", "p50\nx", score_header, "memory\nMiB", "size\nKiB", "size\nx"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    for row, score in zip(rows, scores, strict=True):
        table.add_row(
            Text.assemble(printable(Path(row.file).name), "\n", (printable(row.runtime), "dim")),
            short(row.p20_ms),
            short(row.p50_ms),
            short(row.p80_ms),
            short(row.p50_ms / rows[0].p50_ms),
            Text(score),
            "-" if row.peak_memory_bytes is None else short(row.peak_memory_bytes / _MIB),
            short(row.file_bytes / 1024),
            short(row.file_bytes / rows[0].file_bytes),
        )
    return table


def score_column(rows: Sequence[BenchmarkRow]) -> tuple[str, list[str]]:
    """Header and cells of the first score of each row; each cell has its own label where the scores are not the same.

    ``-`` stands for a score that was not measured.
    """
    firsts = [first_score(row) for row in rows]
    kinds = list(dict.fromkeys(score for score in firsts if score is not None))
    if len(kinds) == 1:
        (kind,) = kinds
        return header(kind), [number(kind, row.scores[kind.name]) if row.scores else "-" for row in rows]
    return "score", [labelled(row) or "-" for row in rows]


def machine_line(rows: Sequence[BenchmarkRow]) -> str:
    """CPU, threads, versions and date of ``rows`` in one line; several values of one thing are joined by a slash.

    What the rows say is made printable here.
    """
    environments = [row.environment for row in rows]
    versions: dict[str, str] = {row.runtime: f"{row.runtime} {row.runtime_version}" for row in rows}
    parts = [
        _joined(e.get("cpu") for e in environments),
        _joined(f"{row.threads} thread{'s' * (row.threads > 1)}" for row in rows),
        _joined(row.device for row in rows),
        _joined(versions.values(), ", "),
        _joined(_bnnedge_version(e) for e in environments),
        _joined(row.started_at[:10] for row in rows),
    ]
    return " · ".join(part for part in parts if part)


def short(value: float) -> str:
    """Three significant digits, trailing zeros kept, and never fewer than the integer part."""
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 2
    return f"{value:.{min(max(digits, 0), 6)}f}"


def _bnnedge_version(environment: dict[str, Any]) -> str:
    version = environment.get("versions", {}).get("bnnedge")
    commit = environment.get("git_commit") or ""
    shortened = commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")
    return " ".join(part for part in ("bnnedge", version, shortened) if part)


def _joined(values: Iterable[object], separator: str = " / ") -> str:
    """Each different value once; of many, the first ``_MOST_VALUES`` and how many more there are."""
    different = list(dict.fromkeys(str(value) for value in values if value))
    shown = [printable(value, most=60) for value in different[:_MOST_VALUES]]
    more = len(different) - len(shown)
    return separator.join(shown) + (f" and {more} more" if more else "")
