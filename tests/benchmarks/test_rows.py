from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnnedge.benchmarks.rows import BenchmarkRow, append_rows, check_appendable, read_rows
from bnnedge.errors import BenchmarkError

RowFactory = Callable[..., BenchmarkRow]


def test_round_trip(make_row: RowFactory) -> None:
    for row in (make_row(), make_row(top1=None, top1_images=0, peak_memory_bytes=None, file="ä \n ]")):
        line = row.to_json()
        assert "\n" not in line
        assert BenchmarkRow.from_json(line) == row


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


@pytest.mark.parametrize("damage", ['{"file": "a', "", "[]", "3", '{"format_version": 1}'])
def test_a_damaged_line_is_named(tmp_path: Path, make_row: RowFactory, damage: str) -> None:
    path = tmp_path / "rows.jsonl"
    append_rows(path, [make_row()])
    path.write_text(f"{path.read_text()}{damage}\n")
    with pytest.raises(BenchmarkError, match=r"rows\.jsonl, line 2: "):
        read_rows(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", 2, "expected format_version 1, found 2"),
        ("p50_ms", "1", "'p50_ms'"),
        ("p50_ms", None, "'p50_ms'"),
        ("runs", 1.5, "'runs'"),
        ("runs", True, "'runs'"),
        ("top1", "high", "'top1'"),
        ("metadata", [], "'metadata'"),
        ("surplus", 1, "surplus"),
    ],
)
def test_a_wrong_field_is_named(make_row: RowFactory, field: str, value: Any, message: str) -> None:
    record = {**json.loads(make_row().to_json()), field: value}
    with pytest.raises(BenchmarkError, match=message):
        BenchmarkRow.from_json(json.dumps(record))


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
