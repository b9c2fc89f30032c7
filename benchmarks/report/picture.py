"""A run's curves and its files' bars in one PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bnnedge.benchmarks.report.run_log import SPLITS, RunLog, read_run_log
from bnnedge.benchmarks.report.scores import labelled
from bnnedge.benchmarks.report.table import machine_line, short
from bnnedge.benchmarks.rows import BenchmarkRow
from bnnedge.errors import BenchmarkError, BnnedgeWarning, MissingDependencyError, one_line, printable
from bnnedge.files import write_output
from bnnedge.tasks.task import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008): told apart with every common colour blindness.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#8C8C8C"
_SPLIT_STYLES = dict(zip(SPLITS, ((BLUE, "--"), (ORANGE, "-"), (ORANGE, "-")), strict=True))
_LOSS = Score("loss", "loss", higher_is_better=False)
_CURVES_A_STRIP = 3
_CURVES_INCHES, _BARS_INCHES, _BAR_INCHES = 3.4, 1.6, 0.5
MOST_BARS, MOST_SCORES = 60, 11
"""Most files and most scores in one picture."""
_MOST_CHARACTERS = 44
"""Longest name beside a bar or above a curve; a longer one would leave no room for these."""


def draw_report(run_dir: Path | None, rows: Sequence[BenchmarkRow], png_path: Path) -> None:
    """Draw scores and loss by epoch (from ``run_dir``), latency and size (from ``rows``) into one PNG.

    Either may be left out, as None or empty. The picture shows the first ``MOST_BARS`` rows and the first
    ``MOST_SCORES`` scores, and a warning says how many are left out. Raises ``BenchmarkError`` if there is nothing
    to draw, if the log is damaged, or if the picture cannot be written; ``MissingDependencyError`` without matplotlib.
    """
    log = RunLog("benchmark", [], []) if run_dir is None else read_run_log(run_dir)
    if not log.epochs and not rows:
        raise BenchmarkError("expected a run folder with epochs or benchmark rows to report, found neither")
    _warn_of_more(len(rows), MOST_BARS, "benchmark rows", "their file has them all, and --rows names another file")
    _warn_of_more(len(log.scores), MOST_SCORES, "scores", "metrics.jsonl of the run has them all")
    try:
        with _style():
            drawn = _drawn(log, rows[:MOST_BARS])
    except ImportError as error:
        raise MissingDependencyError(f"drawing needs matplotlib ({error}); pip install matplotlib") from error
    try:
        png_path.parent.mkdir(parents=True, exist_ok=True)
        write_output(png_path, drawn)
    except OSError as error:
        raise BenchmarkError(f"{png_path}: cannot be written: {error.strerror or error}") from error


def _warn_of_more(there: int, shown: int, what: str, where: str) -> None:
    if there > shown:
        warnings.warn(
            f"the picture shows the first {shown} of {there:,} {what} and leaves out {there - shown:,}; {where}",
            BnnedgeWarning,
            stacklevel=3,
        )


def _drawn(log: RunLog, rows: Sequence[BenchmarkRow]) -> bytes:
    """The picture as the bytes of a PNG file."""
    # Figure, not pyplot: no global state, and no display is looked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = [*log.scores[:MOST_SCORES], _LOSS] if log.epochs else []
    strips = [curves[i : i + _CURVES_A_STRIP] for i in range(0, len(curves), _CURVES_A_STRIP)]
    heights = [_CURVES_INCHES] * len(strips) + [_BARS_INCHES + _BAR_INCHES * len(rows)] * bool(rows)
    figure: Figure = Figure(figsize=(11, sum(heights) + 1.1), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    for part, strip in zip(parts, strips, strict=False):
        for axes, quantity in zip(part.subplots(1, len(strip), squeeze=False)[0], strip, strict=True):
            draw_curves(axes, log, quantity)
    if rows:
        latency, size = parts[-1].subplots(1, 2)
        _draw_latency(latency, rows)
        _draw_size(size, rows)
        figure.supxlabel(machine_line(rows), x=0.01, ha="left", fontsize=8, color="#555555")
    figure.suptitle(printable(log.name, most=80), x=0.01, ha="left", fontsize=14, fontweight="bold")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return drawn.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's settings for a report; names are drawn as they are, and never read as formulas."""
    try:
        from matplotlib import rc_context
    except ValueError as error:  # raised for the variable MPLBACKEND and for the settings file of matplotlib
        raise BenchmarkError(
            f"matplotlib does not start with its settings on this machine ({printable(one_line(error, most=120))}); "
            "mend the environment variable MPLBACKEND or the file matplotlibrc"
        ) from error
    with (
        rc_context(
            {
                "text.parse_math": False,
                "text.usetex": False,
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
        ),
        warnings.catch_warnings(),
    ):
        # A character that no font has is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def _name(text: str) -> str:
    """Text from a file, as it is drawn."""
    return printable(text, most=_MOST_CHARACTERS)


def draw_curves(axes: Axes, log: RunLog, quantity: Score) -> None:
    """The curves of ``quantity``, a score or the loss, on each split that the log holds it for."""
    from matplotlib.ticker import MaxNLocator

    scale = 100 if quantity.unit == "%" else 1
    for split, (colour, style) in _SPLIT_STYLES.items():
        key = f"{split}_{quantity.name}"
        points = [(e.get("epoch", i), scale * e[key]) for i, e in enumerate(log.epochs) if e.get(key) is not None]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, style, color=colour, label=split, linewidth=1.8, marker="o" if len(x) == 1 else None)
    axes.set_title(", ".join(_name(part) for part in (quantity.label, quantity.unit) if part))
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
    """Horizontal bars, the first row on top, each with its label to the right of ``ends``."""
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
    below = ", ".join(part for part in (row.runtime, labelled(row)) if part)
    return f"{_name(Path(row.file).name)}\n{_name(below)}"
