from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray
from rich.console import Console

from bnnedge.benchmarks.report.picture import (
    BLUE,
    GREEN,
    GREY,
    MOST_BARS,
    MOST_SCORES,
    ORANGE,
    draw_curves,
    draw_report,
)
from bnnedge.benchmarks.report.run_log import RunLog, read_metrics, read_run_log
from bnnedge.benchmarks.report.table import comparison_table, machine_line, score_column
from bnnedge.benchmarks.rows import BenchmarkRow
from bnnedge.cli import main
from bnnedge.config import RunConfig
from bnnedge.errors import BenchmarkError, BnnedgeWarning, MissingDependencyError
from bnnedge.tasks import TASKS
from bnnedge.tasks.task import Score

RowFactory = Callable[..., BenchmarkRow]
ODD_NAMES = (
    "a$_$b",
    "$\\frac{$",
    "[/nope][red]",
    "\x1b[2J\x1b]0;t\x07",
    "日本\u202e🙂",
    ":smile:",
    "\udcff",
    "x\0\ny",
    "n" * 9000,
)
"""Names that a formula, Rich's markup, a terminal, a font or a line would take for something else."""


@pytest.fixture
def rows(make_row: RowFactory) -> list[BenchmarkRow]:
    return [
        make_row(),
        make_row(
            file="out/resnet20.tflite",
            runtime="litert",
            runtime_version="2.3.0",
            p50_ms=1.5,
            p80_ms=2.0,
            file_bytes=30720,
        ),
        make_row(
            file="resnet20_float32.onnx",
            p20_ms=3.0,
            p50_ms=3.25,
            p80_ms=4.0,
            file_bytes=1228800,
            scores={},
            samples=0,
            peak_memory_bytes=None,
            metadata={"method": "float32 twin"},
        ),
    ]


def write_run(folder: Path, epochs: list[dict[str, float | None]]) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    epochs: list[dict[str, float | None]] = [
        {"epoch": e, "train_loss": 2 / (e + 1), "train_top1": 0.1 * e, "val_loss": 2.2 / (e + 1), "val_top1": 0.08 * e}
        for e in range(10)
    ]
    return write_run(tmp_path / "my-run", epochs)


def text_of(rows: list[BenchmarkRow], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(comparison_table(rows))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def pixels(image: NDArray[np.float32], colour: str) -> int:
    """Number of pixels of exactly ``colour``, to half an 8-bit step."""
    return int((np.abs(image[..., :3] - to_rgb(colour)).max(axis=-1) < 0.5 / 255).sum())


def test_table_has_latencies_and_ratios_to_the_first_row(rows: list[BenchmarkRow]) -> None:
    first, second, third = (line.split() for line in text_of(rows).splitlines() if "resnet20" in line)
    assert first == ["resnet20.onnx", "0.900", "1.00", "1.20", "1.00", "97.50", "3.00", "60.0", "1.00"]
    assert second == ["resnet20.tflite", "0.900", "1.50", "2.00", "1.50", "97.50", "3.00", "30.0", "0.500"]
    assert third == ["resnet20_float32.onnx", "3.00", "3.25", "4.00", "3.25", "-", "-", "1200", "20.0"]


def test_table_fits_80_columns(rows: list[BenchmarkRow]) -> None:
    text = text_of(rows)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_names_and_numbers_of_real_files_fit_80_columns(make_row: RowFactory) -> None:
    small = make_row(file="resnet20_1w1a.tflite", p20_ms=0.0874, p50_ms=0.0892, p80_ms=0.0937, file_bytes=62000)
    large = {"file": "resnet18_1w1a.onnx", "runtime": "onnxruntime+bnnedge", "file_bytes": 44_684_288}
    slow = make_row(p20_ms=131.0, p50_ms=133.4, p80_ms=140.0, peak_memory_bytes=172 * 2**20, **large)
    first, second, *_ = (line.split() for line in text_of([small, slow]).splitlines() if "1w1a" in line)
    assert first[:4] == ["resnet20_1w1a.tflite", "0.0874", "0.0892", "0.0937"]
    assert second == ["resnet18_1w1a.onnx", "131", "133", "140", "1496", "97.50", "172", "43637", "721"]
    assert "onnxruntime+bnnedge" in text_of([small, slow])


def test_a_table_names_the_score_and_its_unit(make_row: RowFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS._paths, "restoration", f"{__name__}:Restoration")
    psnr = {"task": "restoration", "scores": {"psnr": 31.25, "mse": 0.001}}
    header, cells = score_column([make_row(**psnr), make_row(task="restoration", scores={}, samples=0)])
    assert (header, cells) == ("PSNR\ndB", ["31.25", "-"])
    # Rows of several tasks: each cell says what it is.
    unknown = make_row(task="unheard of", scores={"joy": 0.5})
    header, cells = score_column([make_row(**psnr), make_row(), unknown, make_row(task=None, scores={}, samples=0)])
    assert (header, cells) == ("score", ["PSNR 31.25 dB", "top-1 97.50%", "joy 0.5", "-"])
    assert score_column([make_row(task=None, scores={}, samples=0)]) == ("score", ["-"])


def test_a_table_of_rows_of_version_1(make_row: RowFactory) -> None:
    record = json.loads(make_row().to_json())
    for name in ("task", "scores", "samples"):
        del record[name]
    row = BenchmarkRow.from_json(json.dumps({**record, "format_version": 1, "top1": 0.9, "top1_images": 10}))
    assert score_column([row, make_row()]) == ("top-1\n%", ["90.00", "97.50"])


def test_file_names_are_not_markup(make_row: RowFactory) -> None:
    assert "net[red].onnx" in text_of([make_row(file="net[red].onnx")], width=120)


def test_machine_line_says_each_thing_once(rows: list[BenchmarkRow]) -> None:
    assert machine_line(rows) == (
        "Cortex-A72 · 1 thread · local · onnxruntime 1.31.1, litert 2.3.0 · bnnedge 0.1.0 · 2026-01-31"
    )


def test_machine_line_shows_that_rows_are_not_alike(make_row: RowFactory) -> None:
    environment = {"cpu": "EPYC", "versions": {"bnnedge": "0.1.0"}, "git_commit": "0123456789abcdef-dirty"}
    line = machine_line([make_row(), make_row(threads=4, environment=environment)])
    assert "Cortex-A72 / EPYC" in line
    assert "1 thread / 4 threads" in line
    assert "bnnedge 0.1.0 / bnnedge 0.1.0 0123456789-dirty" in line


def test_picture_has_curves_and_bars(tmp_path: Path, run_dir: Path, rows: list[BenchmarkRow]) -> None:
    png = tmp_path / "new" / "report.png"
    draw_report(run_dir, rows, png)
    image = imread(png)
    assert image.shape[0] > 900
    assert image.shape[1] == 1650
    for colour in (BLUE, ORANGE):
        assert pixels(image, colour) > 1000
    # The only solid areas are the bars: latencies 1 and 1.5 against 3.25, sizes 60 and 30 against 1200.
    measured = pixels(image, GREEN) / pixels(image, GREY)
    widths_ms, widths_kib = 1.6 * 4.0, 1.6 * 1200
    expected = ((1 + 1.5) / widths_ms + (60 + 30) / widths_kib) / (3.25 / widths_ms + 1200 / widths_kib)
    # Error bars and the grey axes text take some pixels, and each bar's edges are blended over one.
    assert measured == pytest.approx(expected, rel=0.1)


def test_picture_of_rows_only_and_of_a_run_only(tmp_path: Path, run_dir: Path, rows: list[BenchmarkRow]) -> None:
    draw_report(None, rows, tmp_path / "rows.png")
    draw_report(run_dir, [], tmp_path / "run.png")
    bars, curves = imread(tmp_path / "rows.png"), imread(tmp_path / "run.png")
    assert pixels(bars, GREEN) > 10_000
    assert pixels(bars, ORANGE) == 0
    assert pixels(curves, GREEN) == 0
    assert pixels(curves, ORANGE) > 1000


@pytest.mark.parametrize("epochs", [1, 2, 3, 200])
def test_epochs_are_whole_numbers(epochs: int) -> None:
    axes = Figure().subplots()
    log = RunLog("run", [{"epoch": i + 1, "val_loss": 1 / (i + 1)} for i in range(epochs)], [])
    draw_curves(axes, log, Score("loss", "loss"))
    ticks = axes.get_xticks()
    assert len(ticks) > 0
    assert all(tick == int(tick) for tick in ticks)


class Restoration:
    """Stands in for a task: what a report reads of one."""

    scores = (Score("psnr", "PSNR", "dB"), Score("mse", "squared error", "", False), Score("ssim", "SSIM"))

    def __init__(self, outputs: int) -> None:
        pass


@pytest.mark.parametrize("splits", [("train", "val"), ("train",), ("train", "test")])
def test_curves_are_those_of_the_task_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, splits: tuple[str, ...]
) -> None:
    monkeypatch.setitem(TASKS._paths, "restoration", f"{__name__}:Restoration")
    quantities = ("mse", "psnr", "loss")
    epochs: list[dict[str, float | None]] = [
        {"epoch": e + 1, "lr": 0.1, **{f"{s}_{q}": e + len(s) + len(q) for s in splits for q in quantities}}
        for e in range(4)
    ]
    run = write_run(tmp_path / "run", epochs)
    RunConfig(method="ste", model="resnet20_1w1a", task="restoration").write(run / "config.yaml")
    log = read_run_log(run)
    assert [score.label for score in log.scores] == ["PSNR", "squared error"]
    axes = Figure().subplots()
    draw_curves(axes, log, log.scores[0])
    assert axes.get_title() == "PSNR, dB"
    assert [line.get_label() for line in axes.lines] == list(splits)
    for split, line in zip(splits, axes.lines, strict=True):
        assert np.asarray(line.get_ydata()).tolist() == [e + len(split) + len("psnr") for e in range(4)]
    draw_report(run, [], tmp_path / "run.png")
    assert imread(tmp_path / "run.png").shape[0] == round((3.4 + 1.1) * 150)


def test_a_run_of_an_earlier_version_is_classification(run_dir: Path) -> None:
    assert [(score.label, score.unit) for score in read_run_log(run_dir).scores] == [("top-1", "%")]
    axes = Figure().subplots()
    draw_curves(axes, read_run_log(run_dir), read_run_log(run_dir).scores[0])
    assert axes.get_title() == "top-1, %"
    assert np.asarray(axes.lines[0].get_ydata()) == pytest.approx([10 * e for e in range(10)])


def test_missing_and_null_metrics_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [{"train_loss": 1.0, "lr": 0.1}, {"val_top1": None, "train_loss": 0.5}, {}])
    draw_report(run, [], tmp_path / "run.png")
    image = imread(tmp_path / "run.png")
    assert pixels(image, BLUE) > 100
    assert pixels(image, ORANGE) == 0


def test_the_picture_is_the_same_every_time(tmp_path: Path, run_dir: Path, rows: list[BenchmarkRow]) -> None:
    for name in ("a.png", "b.png"):
        draw_report(run_dir, rows, tmp_path / name)
    assert np.array_equal(imread(tmp_path / "a.png"), imread(tmp_path / "b.png"))


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="found neither"):
        draw_report(write_run(tmp_path / "run", []), [], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_missing_and_damaged_logs_are_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"nowhere.metrics\.jsonl"):
        read_metrics(tmp_path / "nowhere")
    run = write_run(tmp_path / "run", [{"epoch": 0}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "train_lo')
    with pytest.raises(BenchmarkError, match=r"metrics\.jsonl, line 2: expected JSON, found damage"):
        read_metrics(run)


def test_a_picture_that_cannot_be_written(tmp_path: Path, rows: list[BenchmarkRow]) -> None:
    with pytest.raises(BenchmarkError, match="cannot be written"):
        draw_report(None, rows, tmp_path)


def test_without_matplotlib_it_says_so(
    tmp_path: Path, rows: list[BenchmarkRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match="pip install matplotlib"):
        draw_report(None, rows, tmp_path / "a.png")


def odd_rows(make_row: RowFactory) -> list[BenchmarkRow]:
    return [
        make_row(
            file=f"out/{name.replace('/', '')}",
            runtime=name,
            runtime_version=name,
            device=name,
            task=name,
            scores={name: 0.5},
            metadata={"method": name},
            environment={"cpu": name, "versions": {"bnnedge": name}, "git_commit": name},
            started_at=name,
        )
        for name in ODD_NAMES
    ]


def test_names_are_drawn_as_they_are(tmp_path: Path, make_row: RowFactory) -> None:
    names = [name for name in ODD_NAMES if name != "\udcff"]  # JSON cannot hold this one
    epochs: list[dict[str, float | None]] = [{"epoch": e, **{f"train_{name}": e for name in names}} for e in (1, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, name in enumerate(("a$_$b", "[red]$日本")):
            run = write_run(tmp_path / name, epochs)
            draw_report(run, odd_rows(make_row), tmp_path / f"{number}.png")
            assert imread(tmp_path / f"{number}.png").shape[1] == 1650


def test_a_dollar_is_a_dollar(tmp_path: Path, make_row: RowFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A formula that is a right one would be drawn as a formula without an error."""
    drawn = []
    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", lambda *given, **_: drawn.append(given))
    draw_report(None, [make_row(file="$x^2$", runtime="$y$")], tmp_path / "a.png")
    assert not drawn


def test_long_names_leave_room_for_bars(tmp_path: Path, make_row: RowFactory) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib gives up its layout with a warning
        draw_report(None, [make_row(file="n" * 9000, runtime="r" * 9000)], tmp_path / "a.png")
    assert pixels(imread(tmp_path / "a.png"), GREEN) > 5000


def test_names_in_a_table_are_printable_and_no_markup(make_row: RowFactory) -> None:
    text = text_of(odd_rows(make_row), width=300)
    assert all(character.isprintable() or character == "\n" for character in text)
    for shown in ("a$_$b", "[/nope][red]", r"\x1b[2J\x1b]0;t\x07", ":smile:", r"\udcff", r"x\x00\ny"):
        assert shown.replace("/", "") in text
        assert text.count(shown) >= 2  # in the cell of the runtime, and in that of the score


def test_the_machine_line_is_short_and_printable(make_row: RowFactory) -> None:
    rows = [make_row(environment={"cpu": f"CPU {i}\x1b"}, runtime=f"runtime {i}") for i in range(1000)]
    line = machine_line(rows)
    assert line.startswith(r"CPU 0\x1b / CPU 1\x1b / CPU 2\x1b and 997 more")
    assert "runtime 0 1.31.1, runtime 1 1.31.1, runtime 2 1.31.1 and 997 more" in line
    assert len(machine_line(odd_rows(make_row))) < 2000


def test_a_picture_of_many_rows_has_the_first_ones_and_says_so(tmp_path: Path, make_row: RowFactory) -> None:
    rows = [make_row() for _ in range(1000)]
    with pytest.warns(BnnedgeWarning, match="first 60 of 1,000 benchmark rows and leaves out 940; their file has them"):
        draw_report(None, rows, tmp_path / "many.png")
    draw_report(None, rows[:MOST_BARS], tmp_path / "first.png")
    assert np.array_equal(imread(tmp_path / "many.png"), imread(tmp_path / "first.png"))


def test_a_picture_of_many_scores_has_the_first_ones_and_the_loss(tmp_path: Path) -> None:
    names = [f"score{i:04}" for i in range(1000)]
    run = write_run(tmp_path / "run", [{"train_loss": 1.0, **dict.fromkeys((f"train_{name}" for name in names), 1.0)}])
    with pytest.warns(BnnedgeWarning, match=r"first 11 of 1,000 scores and leaves out 989; metrics\.jsonl"):
        draw_report(run, [], tmp_path / "many.png")
    (run / "metrics.jsonl").write_text(
        json.dumps({"train_loss": 1.0, **dict.fromkeys((f"train_{name}" for name in names[:MOST_SCORES]), 1.0)})
    )
    draw_report(run, [], tmp_path / "first.png")
    assert np.array_equal(imread(tmp_path / "many.png"), imread(tmp_path / "first.png"))


def test_latencies_at_both_ends_of_what_a_row_may_hold(tmp_path: Path, make_row: RowFactory) -> None:
    small = make_row(p20_ms=1e-9, p50_ms=1e-9, p80_ms=1e-9, file_bytes=1, scores={"top1": 1e100})
    large = make_row(p20_ms=1e12, p50_ms=1e12, p80_ms=1e12, file_bytes=2**53, scores={"top1": -1e100})
    for rows in ([small, large], [large, small]):
        rows = [BenchmarkRow.from_json(row.to_json()) for row in rows]
        assert text_of(rows)
        draw_report(None, rows, tmp_path / "a.png")


def reported(run: Path, **environment: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``bnnedge report`` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bnnedge", "report", str(run)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def whole_run(run_dir: Path) -> Path:
    """A run folder that the command line takes for one."""
    RunConfig(method="ste", model="resnet20_1w1a").write(run_dir / "config.yaml")
    return run_dir


def test_matplotlib_says_nothing_of_its_caches(whole_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    environment = {"MPLCONFIGDIR": str(tmp_path / "file"), "MPLBACKEND": ""}
    said = subprocess.run(
        [sys.executable, "-c", "import matplotlib.font_manager"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert "temporary" in said  # this is what matplotlib says by itself
    assert reported(whole_run, **environment) == (0, f"wrote {whole_run}/report.png\n", "")


def test_settings_that_stop_matplotlib_are_one_line(whole_run: Path, tmp_path: Path) -> None:
    code, _, said = reported(whole_run, MPLBACKEND="nosuch")
    assert code == 2
    assert said.startswith("error: matplotlib does not start") and "'nosuch'" in said and said.count("\n") == 1
    (tmp_path / "matplotlibrc").write_bytes(b"font.family: \xff\n")
    code, _, said = reported(whole_run, MPLCONFIGDIR=str(tmp_path), MPLBACKEND="")
    assert code == 2
    assert said.startswith("error: matplotlib does not start") and said.count("\n") == 1


def test_the_settings_of_the_user_do_not_read_names_as_formulas(whole_run: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    assert reported(whole_run, MPLCONFIGDIR=str(tmp_path), MPLBACKEND="")[0] == 0


def test_report_of_a_hostile_folder_name(whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = whole_run.rename(tmp_path / "a\x1b[2J$_$")
    assert main(["report", str(hostile)]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path}/a\\x1b[2J$_$/report.png\n"
    assert (hostile / "report.png").is_file()
