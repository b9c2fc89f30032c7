from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bnnedge.benchmarks.environment import read_environment
from bnnedge.benchmarks.gpu.row import GpuRow
from bnnedge.benchmarks.methods.cost import CostRow
from bnnedge.benchmarks.ops.row import OpRow
from bnnedge.benchmarks.rows import BenchmarkRow, Row, append_rows, check_appendable, read_rows
from bnnedge.errors import BenchmarkError

RowFactory = Callable[..., BenchmarkRow]
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
MEASURED_IN_VERSION_1 = (
    '{"format_version": 1, "file": "out/net.onnx", "runtime": "onnxruntime", "runtime_version": "1.31.1", '
    '"device": "local", "threads": 1, "input": "digits test", "batch_size": 1, "warmup": 1, "runs": 5, "p20_ms": 0.5, '
    '"p50_ms": 0.6, "p80_ms": 0.7, "images_per_s": 1666.7, "top1": 0.975, "top1_images": 359, '
    '"peak_memory_bytes": 1048576, "file_bytes": 61440, "metadata": {"method": "ste", "num_classes": 10}, '
    '"environment": {"cpu": "Cortex-A72"}, "started_at": "2026-01-31T12:00:00+00:00"}'
)
MEASURED_IN_VERSION_2 = MEASURED_IN_VERSION_1.replace('"format_version": 1', '"format_version": 2').replace(
    '"top1": 0.975, "top1_images": 359', '"task": "classification", "scores": {"top1": 0.975}, "samples": 359'
)


def test_round_trip(make_row: RowFactory) -> None:
    unmeasured = make_row(task=None, scores={}, samples=0, peak_memory_bytes=None, file="ä \n ]")
    for row in (make_row(), unmeasured):
        line = row.to_json()
        assert "\n" not in line
        assert BenchmarkRow.from_json(line) == row


def test_a_row_of_version_1_is_read_as_classification() -> None:
    row = BenchmarkRow.from_json(MEASURED_IN_VERSION_1)
    assert (row.task, row.scores, row.samples) == ("classification", {"top1": 0.975}, 359)
    old, new = json.loads(MEASURED_IN_VERSION_1), json.loads(row.to_json())
    assert new.pop("format_version") == 2
    for name in ("task", "scores", "samples"):
        del new[name]
    for name in ("format_version", "top1", "top1_images"):
        del old[name]
    assert new == old
    unmeasured = MEASURED_IN_VERSION_1.replace("0.975", "null").replace("359", "0")
    row = BenchmarkRow.from_json(unmeasured)
    assert (row.task, row.scores, row.samples) == ("classification", {}, 0)


def test_a_row_of_version_2_is_read() -> None:
    """A line as it was written, so that a new version cannot come without a reader of this one."""
    row = BenchmarkRow.from_json(MEASURED_IN_VERSION_2)
    assert (row.task, row.scores, row.samples, row.p50_ms) == ("classification", {"top1": 0.975}, 359, 0.6)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (MEASURED_IN_VERSION_1.replace('"top1": 0.975, ', ""), "missing fields of format_version 1: top1"),
        (MEASURED_IN_VERSION_1.replace("0.975", '"high"'), "scores"),
        (MEASURED_IN_VERSION_1.replace('"runs": 5, ', ""), "missing or unknown fields: runs"),
    ],
)
def test_a_damaged_row_of_version_1_is_refused(damaged: str, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        BenchmarkRow.from_json(damaged)


def test_rows_of_both_versions_share_a_file(tmp_path: Path, make_row: RowFactory) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{MEASURED_IN_VERSION_1}\n")
    append_rows(path, [make_row()])
    assert [row.scores for row in read_rows(path)] == [{"top1": 0.975}, {"top1": 0.975}]
    assert [json.loads(line)["format_version"] for line in path.read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize(
    ("pattern", "kind"), [("networks_*", BenchmarkRow), ("ops_*", OpRow), ("methods_cost", CostRow)]
)
def test_committed_rows_are_read(pattern: str, kind: type[Row]) -> None:
    lines = [line for path in RESULTS.glob(f"{pattern}.jsonl") for line in path.read_text().splitlines()]
    assert lines
    for line in lines:
        row = kind.from_json(line)
        assert row.environment["cpu"]
        assert kind.from_json(row.to_json()) == row


def test_rows_of_another_kind_are_not_appended_to(tmp_path: Path, make_row: RowFactory) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [make_row()])
    with pytest.raises(
        BenchmarkError, match=r"rows\.jsonl, line 1: expected format_version 1 or an older one, found 2"
    ):
        check_appendable(path, GpuRow)


def test_the_longest_field_stands_last(make_row: RowFactory) -> None:
    names = [*json.loads(make_row().to_json())]
    assert (names[0], names[-1]) == ("format_version", "environment")


def test_append_keeps_what_is_there(tmp_path: Path, make_row: RowFactory) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    rows = [make_row(runs=n) for n in (1, 2, 3)]
    append_rows(path, rows[:2])
    before = path.read_bytes()
    append_rows(path, rows[2:])
    assert path.read_bytes().startswith(before)
    assert read_rows(path) == rows


def test_a_whole_number_is_a_float_too(make_row: RowFactory) -> None:
    record = json.loads(make_row().to_json())
    record["p50_ms"] = 1
    assert BenchmarkRow.from_json(json.dumps(record)).p50_ms == 1


@pytest.mark.parametrize("damage", ['{"file": "a', "", "[]", "3", '{"format_version": 1}', '{"format_version": 2}'])
def test_a_damaged_line_is_named(tmp_path: Path, make_row: RowFactory, damage: str) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [make_row()])
    path.write_text(f"{path.read_text()}{damage}\n")
    with pytest.raises(BenchmarkError, match=r"rows\.jsonl, line 2: "):
        read_rows(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", 3, "expected format_version 2 or an older one, found 3; update bnnedge, or measure again"),
        ("format_version", None, "expected format_version 2 or an older one, found None"),
        ("p50_ms", "1", "p50_ms"),
        ("p50_ms", None, "p50_ms"),
        ("runs", 1.5, "runs"),
        ("runs", True, "runs"),
        ("scores", {"top1": "high"}, "scores"),
        ("scores", [0.9], "scores"),
        ("samples", 0, "expected scores of at least 1 sample, or none of 0 samples, found 1 scores of 0 samples"),
        ("task", 1, "task"),
        ("metadata", [], "metadata"),
        ("surplus", 1, "surplus"),
        ("scores", {"top1": 1e308}, "scores.top1"),
        ("p20_ms", 1e-320, "p20_ms"),
        ("environment", {"versions": [1]}, r"environment\.versions: .*, found \[1\]"),
        ("environment", {"versions": {"torch": 2}}, r"environment\.versions: torch: .*, found 2"),
        ("environment", {"git_commit": 5}, r"environment\.git_commit: .*, found 5"),
        ("environment", {"cpu": None}, r"environment\.cpu: .*, found None"),
        ("environment", {"cpu_flags": "avx2"}, r"environment\.cpu_flags: .*, found 'avx2'"),
    ],
)
def test_a_wrong_field_is_named(make_row: RowFactory, field: str, value: Any, message: str) -> None:
    record = {**json.loads(make_row().to_json()), field: value}
    with pytest.raises(BenchmarkError, match=message):
        BenchmarkRow.from_json(json.dumps(record))


def test_an_environment_may_hold_less_and_more(make_row: RowFactory) -> None:
    for environment in ({}, asdict(read_environment()), {"cpu": "x", "gpu": {"name": "y"}, "git_commit": None}):
        assert BenchmarkRow.from_json(make_row(environment=environment).to_json()).environment == environment


def test_a_missing_field_is_named(make_row: RowFactory) -> None:
    record = json.loads(make_row().to_json())
    del record["threads"]
    with pytest.raises(BenchmarkError, match="threads"):
        BenchmarkRow.from_json(json.dumps(record))


def test_a_number_that_json_has_not_is_refused(make_row: RowFactory) -> None:
    with pytest.raises(BenchmarkError, match=r"out/resnet20\.onnx"):
        make_row(images_per_s=float("nan")).to_json()


@pytest.mark.parametrize(
    "wrong", [{"p50_ms": 1.3}, {"p20_ms": 0.0}, {"p80_ms": float("nan")}, {"p80_ms": float("inf")}, {"file_bytes": 0}]
)
def test_impossible_measurements_are_refused(make_row: RowFactory, wrong: dict[str, float]) -> None:
    with pytest.raises(BenchmarkError, match=r"out/resnet20\.onnx: expected"):
        make_row(**wrong)


def test_rows_are_not_appended_to_half_a_line(tmp_path: Path, make_row: RowFactory) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(make_row().to_json()[:-5])
    with pytest.raises(BenchmarkError, match="cut off"):
        append_rows(path, [make_row()])


def test_check_appendable(tmp_path: Path, make_row: RowFactory) -> None:
    with pytest.raises(BenchmarkError, match="cannot be written"):
        check_appendable(tmp_path)
    (tmp_path / "notes.txt").write_text("dear diary\n")
    with pytest.raises(BenchmarkError, match=r"notes\.txt, line 1"):
        check_appendable(tmp_path / "notes.txt")
    check_appendable(tmp_path / "fresh.jsonl")
    assert not (tmp_path / "fresh.jsonl").exists()  # nothing is left of a measurement that fails
    append_rows(tmp_path / "fresh.jsonl", [make_row()])
    assert len(read_rows(tmp_path / "fresh.jsonl")) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"nowhere\.jsonl"):
        read_rows(tmp_path / "nowhere.jsonl")
