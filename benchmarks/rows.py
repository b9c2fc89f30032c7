"""Benchmark rows: one measurement, one JSON line, and all that is needed to read it later.

Reports are computed from rows alone. ``Row`` is what every kind of row has; ``BenchmarkRow`` is the kind that
``bnnedge bench`` writes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import ConfigDict, Field

from bnnedge.benchmarks.environment import check_environment
from bnnedge.errors import BenchmarkError, printable
from bnnedge.files import append, read_within
from bnnedge.schema import Number, check, read_json

if TYPE_CHECKING:
    from typing_extensions import Self

MOST_LINE_CHARACTERS = 2**22
MOST_FILE_BYTES = 2**30
Text = Annotated[str, Field(max_length=10_000)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Milliseconds = Annotated[float, Field(ge=1e-9, le=1e12)]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What every kind of row has: a format version, the environment, and its form as one JSON line."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    format_version: ClassVar[int] = 1
    """Raised when a field changes its meaning, appears or goes. It is the first field of the JSON line."""
    environment: dict[str, Any]
    """The ``Environment`` of the machine that was measured."""

    def to_json(self) -> str:
        """One line without its newline. Raises ``BenchmarkError`` for a number that JSON cannot hold (NaN, inf)."""
        record = asdict(self)
        record["environment"] = record.pop("environment")  # the longest field stands last
        try:
            return json.dumps({"format_version": self.format_version, **record}, allow_nan=False)
        except (ValueError, TypeError) as error:
            raise BenchmarkError(f"{self.subject}: the row cannot be written as JSON: {error}") from error

    @property
    def subject(self) -> str:
        """The name of what was measured, for messages."""
        return type(self).__name__

    @classmethod
    def from_json(cls, line: str) -> Self:
        """The row in ``line``, also of an older format version. Raises ``BenchmarkError`` saying what is wrong."""
        if len(line) > MOST_LINE_CHARACTERS:
            raise BenchmarkError(f"expected at most {MOST_LINE_CHARACTERS:,} characters, found {len(line):,}")
        record = read_json(line, "a row", BenchmarkError)
        if not isinstance(record, dict):
            raise BenchmarkError(f"expected a JSON object, found {type(record).__name__}")
        version = record.pop("format_version", None)
        if version != cls.format_version:
            record = cls.upgraded(record, version)
        names = {f.name for f in fields(cls)}
        if odd := names ^ record.keys():
            raise BenchmarkError(f"missing or unknown fields: {printable(', '.join(sorted(odd)))}")
        row = check(record, cls, "a row", BenchmarkError)
        check_environment(row.environment, "a row: environment")
        return row

    @classmethod
    def upgraded(cls, record: dict[str, Any], version: Any) -> dict[str, Any]:
        """``record``, written with the older format ``version``, as the present version has it.

        Raises ``BenchmarkError`` for a version that cannot be read.
        """
        raise BenchmarkError(
            f"expected format_version {cls.format_version} or an older one, found {printable(repr(version), 60)}; "
            "update bnnedge, or measure again"
        )


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow(Row):
    """One file, measured by one runtime on one device."""

    format_version: ClassVar[int] = 2

    file: Text
    """The path as given, or the label of a generated file."""
    runtime: Text
    """Name in RUNTIMES."""
    runtime_version: Text
    device: Text
    """Name in DEVICES, or the address of the device; ``environment`` says what machine that was."""
    threads: Annotated[int, Field(ge=1, le=2**31)]
    input: Text
    """What the file was given: ``<data set> test`` or ``random normal``."""
    batch_size: Annotated[int, Field(ge=1, le=2**31)]
    """Images per run."""
    warmup: Count
    """Runs before the measured ones."""
    runs: Annotated[int, Field(ge=1, le=2**31)]
    """Measured runs."""
    p20_ms: Milliseconds
    """20 % of the runs took at most this long, interpolated linearly between runs."""
    p50_ms: Milliseconds
    p80_ms: Milliseconds
    images_per_s: float
    """``1000 * batch_size / p50_ms``."""
    task: Text | None
    """Name in TASKS, which defines the scores; None for a file that does not say."""
    scores: dict[Text, Number]
    """Each score of the task by its name, computed over all samples; empty if not measured."""
    samples: Count
    """Test samples behind ``scores``; 0 if not measured."""
    peak_memory_bytes: Count | None
    """What the file adds to a process, as memory.py defines it; None where the system cannot tell."""
    file_bytes: Count
    metadata: dict[str, Any]
    """What the file says of itself: method, model, data set, preprocessing record, ..."""
    started_at: Text
    """UTC, ISO 8601."""

    def __post_init__(self) -> None:
        if not 0 < self.p20_ms <= self.p50_ms <= self.p80_ms < math.inf:
            found = f"{self.p20_ms}, {self.p50_ms}, {self.p80_ms}"
            raise BenchmarkError(f"{self.file}: expected rising p20_ms, p50_ms, p80_ms above 0, found {found}")
        if self.file_bytes < 1:
            raise BenchmarkError(f"{self.file}: expected file_bytes of at least 1, found {self.file_bytes}")
        if bool(self.scores) != (self.samples > 0):
            raise BenchmarkError(
                f"{self.file}: expected scores of at least 1 sample, or none of 0 samples, "
                f"found {len(self.scores)} scores of {self.samples} samples"
            )

    @property
    def subject(self) -> str:
        return self.file

    @classmethod
    def upgraded(cls, record: dict[str, Any], version: Any) -> dict[str, Any]:
        """Version 1 knew classification alone: ``top1`` (or null) of ``top1_images`` images."""
        if version != 1:
            return super().upgraded(record, version)
        if missing := {"top1", "top1_images"} - record.keys():
            raise BenchmarkError(f"missing fields of format_version 1: {', '.join(sorted(missing))}")
        record = dict(record)
        top1, samples = record.pop("top1"), record.pop("top1_images")
        scores = {} if top1 is None else {"top1": top1}
        return {**record, "task": "classification", "scores": scores, "samples": samples}


R = TypeVar("R", bound=Row)


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Add ``rows``, all of one kind, to the end of a JSON lines file, creating it and its folder if needed.

    Raises ``BenchmarkError`` as ``check_appendable`` does.
    """
    if not rows:
        return
    check_appendable(path, type(rows[0]))
    text = "".join(f"{row.to_json()}\n" for row in rows)
    try:
        append(Path(os.path.realpath(path)), text.encode())
    except OSError as error:
        raise _unwritable(path, error) from error


def read_rows(path: Path) -> list[BenchmarkRow]:
    """All rows of a JSON lines file, in order. Raises ``BenchmarkError`` naming the damaged line."""
    return _read(path, BenchmarkRow)


def check_appendable(path: Path, kind: type[Row] = BenchmarkRow) -> None:
    """Raise ``BenchmarkError`` if rows of ``kind`` cannot be added to ``path``: better before measuring than after."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        was_there = os.path.lexists(path)
        with path.open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            last = file.read(1)
        if not was_there:
            path.unlink()
            return
    except OSError as error:
        raise _unwritable(path, error) from error
    if last not in (b"", b"\n"):
        raise BenchmarkError(f"{path}: the last line is cut off; remove it, or choose another file")
    _read(path, kind)


def _read(path: Path, kind: type[R]) -> list[R]:
    try:
        lines = read_within(path, MOST_FILE_BYTES, BenchmarkError).decode().splitlines()
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{path}: cannot be read as benchmark rows: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(kind.from_json(line))
        except BenchmarkError as error:
            raise BenchmarkError(f"{path}, line {number}: {error}") from error
    return rows


def _unwritable(path: Path, error: OSError) -> BenchmarkError:
    return BenchmarkError(f"{path}: cannot be written: {error.strerror or error}")
