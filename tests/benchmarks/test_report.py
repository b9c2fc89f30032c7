from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray
from rich.console import Console

from bnnedge.benchmarks.report.picture import BLUE, GREEN, GREY, ORANGE, draw_curves, draw_report
from bnnedge.benchmarks.report.run_log import RunLog, read_metrics, read_run_log
from bnnedge.benchmarks.report.table import comparison_table, machine_line, score_column
from bnnedge.benchmarks.rows import BenchmarkRow
from bnnedge.config import RunConfig
from bnnedge.errors import BenchmarkError, MissingDependencyError
from bnnedge.tasks import TASKS
from bnnedge.tasks.task import Score

RowFactory = Callable[..., BenchmarkRow]


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
