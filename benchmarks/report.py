"""Rows to a table and a picture. Everything shown is computed from rows and a run's log; nothing is measured here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from bnnedge.benchmarks.result import BenchmarkRow
from bnnedge.errors import BenchmarkError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito, "Color Universal Design" (2008): told apart with every common colour blindness.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#8C8C8C"
_MIB = 2**20


def comparison_table(rows: Sequence[BenchmarkRow]) -> Table:
    """One line a row, 80 columns wide; ``x`` is the multiple of the first row's median latency or file size."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        caption=machine_line(rows),
        caption_justify="left",
    )
    table.add_column("file\nruntime", overflow="fold", min_width=20)
    for name in ("p20\nms", "p50\nms", "p80\nms", "p50\nx", "top-1\n%", "memory\nMiB", "size\nKiB", "size\nx"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{escape(Path(row.file).name)}\n[dim]{row.runtime}[/dim]",
            short(row.p20_ms),
            short(row.p50_ms),
            short(row.p80_ms),
            short(row.p50_ms / rows[0].p50_ms),
            "-" if row.top1 is None else f"{100 * row.top1:.2f}",
            "-" if row.peak_memory_bytes is None else short(row.peak_memory_bytes / _MIB),
            short(row.file_bytes / 1024),
            short(row.file_bytes / rows[0].file_bytes),
        )
    return table


def machine_line(rows: Sequence[BenchmarkRow]) -> str:
    """CPU, threads, versions and date of ``rows`` in one line; several values of one thing are joined by a slash."""
    environments = [row.environment for row in rows]
    versions: dict[str, str] = {row.runtime: f"{row.runtime} {row.runtime_version}" for row in rows}
    parts = [
        _joined(e.get("cpu") for e in environments),
        _joined(f"{row.threads} thread{'s' * (row.threads > 1)}" for row in rows),
        _joined(row.device for row in rows),
        ", ".join(versions.values()),
        _joined(_bnnedge_version(e) for e in environments),
        _joined(row.started_at[:10] for row in rows),
    ]
    return " · ".join(part for part in parts if part)


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """The epochs in ``run_dir``/metrics.jsonl, in order. Raises ``BenchmarkError`` if missing or damaged."""
    path = run_dir / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BenchmarkError(f"{path}: expected the log of a training run: {error.strerror or error}") from error
    epochs = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise BenchmarkError(f"{path}, line {number}: damaged JSON ({error})") from error
        if not isinstance(record, dict):
            raise BenchmarkError(f"{path}, line {number}: expected a JSON object, found {type(record).__name__}")
        epochs.append(record)
    return epochs


def report(run_dir: Path | None, rows: Sequence[BenchmarkRow], png_path: Path) -> None:
    """Draw accuracy and loss by epoch (from ``run_dir``), latency and size (from ``rows``) into one PNG.

    Either may be left out, as None or empty. Raises ``BenchmarkError`` if both are, or if the log is damaged;
    ``MissingDependencyError`` without matplotlib.
    """
    epochs = read_metrics(run_dir) if run_dir is not None else []
    if not epochs and not rows:
        raise BenchmarkError("expected a run folder with epochs or benchmark rows to report, found neither")
    try:
        with _style():
            _draw(run_dir.name if run_dir is not None else "benchmark", epochs, rows, png_path)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"drawing needs matplotlib ({error}); pip install matplotlib") from error
    except OSError as error:
        raise BenchmarkError(f"{png_path}: cannot be written: {error.strerror or error}") from error


def _draw(title: str, epochs: Sequence[dict[str, float]], rows: Sequence[BenchmarkRow], png_path: Path) -> None:
    # Figure, not pyplot: no global state, and no display is looked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [3.4] * bool(epochs) + [1.6 + 0.5 * len(rows)] * bool(rows)
    figure = Figure(figsize=(11, sum(heights) + 1.1), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(heights), 2, height_ratios=heights, squeeze=False)
    if epochs:
        _draw_curves(axes[0][0], epochs, "top1", "top-1 accuracy, %", 100)
        _draw_curves(axes[0][1], epochs, "loss", "loss", 1)
    if rows:
        _draw_latency(axes[-1][0], rows)
        _draw_size(axes[-1][1], rows)
        figure.supxlabel(machine_line(rows), x=0.01, ha="left", fontsize=8, color="#555555")
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
    png_path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png_path, format="png")


def _style() -> AbstractContextManager[None]:
    from matplotlib import rc_context

    return rc_context(
        {
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#555555",
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "axes.axisbelow": True,
            "grid.color": "#DDDDDD",
            "legend.frameon": False,
        }
    )


def _draw_curves(axes: Axes, epochs: Sequence[dict[str, float]], quantity: str, title: str, scale: float) -> None:
    from matplotlib.ticker import MaxNLocator

    for split, colour, style in (("train", BLUE, "--"), ("val", ORANGE, "-")):
        key = f"{split}_{quantity}"
        logged = [(e.get("epoch", i), scale * e[key]) for i, e in enumerate(epochs) if e.get(key) is not None]
        if logged:
            x, y = zip(*logged, strict=True)
            axes.plot(x, y, style, color=colour, label=split, linewidth=1.8, marker="o" if len(x) == 1 else None)
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y")
    if axes.lines:
        axes.legend()


def _draw_latency(axes: Axes, rows: Sequence[BenchmarkRow]) -> None:
    medians = [row.p50_ms for row in rows]
    below = [row.p50_ms - row.p20_ms for row in rows]
    above = [row.p80_ms - row.p50_ms for row in rows]
    labels = [f"{short(m)} ms  ({m / medians[0]:.2f}x)" for m in medians]
    _draw_bars(axes, rows, medians, labels, [row.p80_ms for row in rows])
    axes.errorbar(medians, range(len(rows)), xerr=[below, above], fmt="none", ecolor="#333333", capsize=3, linewidth=1)
    axes.set_title("latency of one image, ms: median, p20 to p80")


def _draw_size(axes: Axes, rows: Sequence[BenchmarkRow]) -> None:
    sizes = [row.file_bytes / 1024 for row in rows]
    labels = [f"{s:,.1f} KiB  ({s / sizes[0]:.2f}x)" for s in sizes]
    _draw_bars(axes, rows, sizes, labels, sizes)
    axes.set_yticklabels([])
    axes.set_title("file size, KiB")


def _draw_bars(
    axes: Axes, rows: Sequence[BenchmarkRow], values: Sequence[float], labels: Sequence[str], ends: Sequence[float]
) -> None:
    """Horizontal bars, first row on top, each with its label right of ``ends``."""
    colours = [GREY if str(row.metadata.get("method")).startswith("float32") else GREEN for row in rows]
    axes.barh(range(len(rows)), values, color=colours, height=0.6)
    for i, (end, label) in enumerate(zip(ends, labels, strict=True)):
        axes.annotate(label, (end, i), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [_bar_name(row) for row in rows])
    axes.set_xlim(0, 1.6 * max(ends))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _bar_name(row: BenchmarkRow) -> str:
    accuracy = "" if row.top1 is None else f", {100 * row.top1:.1f} %"
    return f"{Path(row.file).name}\n{row.runtime}{accuracy}"


def short(value: float) -> str:
    """Three significant digits, trailing zeros kept, and never fewer than the integer part."""
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 2
    return f"{value:.{min(max(digits, 0), 6)}f}"


def _bnnedge_version(environment: dict[str, Any]) -> str:
    version = environment.get("versions", {}).get("bnnedge")
    commit = environment.get("git_commit") or ""
    short = commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")
    return " ".join(part for part in ("bnnedge", version, short) if part)


def _joined(values: Iterable[object]) -> str:
    return " / ".join(dict.fromkeys(str(value) for value in values if value))
