"""The benchmark row: one measurement of one file, one JSON line. Reports are computed from rows alone."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from bnnedge.errors import BenchmarkError

FORMAT_VERSION = 1
"""Raised when a field changes its meaning, appears or goes; readers refuse what they do not know."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """One file, measured by one runtime on one device, and all that is needed to read the numbers later."""

    file: str
    """Path as given, or the label of a generated file."""
    runtime: str
    """Name in RUNTIMES."""
    runtime_version: str
    device: str
    """Name in DEVICES; what machine that was is in ``environment``."""
    threads: int
    input: str
    """What was fed: ``<data set> test`` or ``random normal``."""
    batch_size: int
    """Images per run."""
    warmup: int
    """Runs before the measured ones."""
    runs: int
    """Measured runs."""
    p20_ms: float
    """20 % of the runs took at most this long, linear interpolation between runs."""
    p50_ms: float
    p80_ms: float
    images_per_s: float
    """``1000 * batch_size / p50_ms``."""
    top1: float | None
    """Fraction of test images whose largest output is at their label, in [0, 1]; None if not measured."""
    top1_images: int
    """Test images behind ``top1``; 0 if not measured."""
    peak_memory_bytes: int | None
    """What the file adds to a process, as memory.py defines it; None where the system cannot tell."""
    file_bytes: int
    metadata: dict[str, Any]
    """What the file says of itself: method, model, data set, ..."""
    environment: dict[str, Any]
    """``Environment`` of the device."""
    started_at: str
    """UTC, ISO 8601."""

    def __post_init__(self) -> None:
        if not 0 < self.p20_ms <= self.p50_ms <= self.p80_ms < math.inf:
            found = f"{self.p20_ms}, {self.p50_ms}, {self.p80_ms}"
            raise BenchmarkError(f"{self.file}: expected rising p20_ms, p50_ms, p80_ms above 0, found {found}")
        if self.file_bytes < 1:
            raise BenchmarkError(f"{self.file}: expected file_bytes of at least 1, found {self.file_bytes}")

    def to_json(self) -> str:
        """One line without its newline. Raises ``BenchmarkError`` for a number that JSON cannot hold (NaN, inf)."""
        try:
            return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, allow_nan=False)
        except (ValueError, TypeError) as error:
            raise BenchmarkError(f"benchmark row of {self.file} cannot be written as JSON: {error}") from error

    @classmethod
    def from_json(cls, line: str) -> BenchmarkRow:
        """The row in ``line``. Raises ``BenchmarkError`` saying what is wrong with it."""
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise BenchmarkError(f"expected a JSON object, found damaged JSON ({error})") from error
        if not isinstance(record, dict):
            raise BenchmarkError(f"expected a JSON object, found {type(record).__name__}")
        version = record.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise BenchmarkError(f"expected format_version {FORMAT_VERSION}, found {version!r}; measure again")
        hints = get_type_hints(cls)
        names = {f.name for f in fields(cls)}
        if odd := names ^ record.keys():
            raise BenchmarkError(f"missing or unknown fields: {', '.join(sorted(odd))}")
        for name, value in record.items():
            if not _fits(value, hints[name]):
                raise BenchmarkError(f"field {name!r}: {value!r} is of the wrong type")
        return cls(**record)


def append_rows(path: Path, rows: Iterable[BenchmarkRow]) -> None:
    """Add ``rows`` to the end of a JSON lines file, creating it and its folder if needed."""
    check_appendable(path)
    append_lines(path, [row.to_json() for row in rows])


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add ``lines`` to a file, at once. Raises ``BenchmarkError`` if it cannot be written."""
    text = "".join(f"{line}\n" for line in lines)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise BenchmarkError(f"{path}: cannot be written: {error.strerror or error}") from error


def read_rows(path: Path) -> list[BenchmarkRow]:
    """All rows of a JSON lines file, in order. Raises ``BenchmarkError`` naming the damaged line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path}: cannot be read as benchmark rows: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(BenchmarkRow.from_json(line))
        except BenchmarkError as error:
            raise BenchmarkError(f"{path}, line {number}: {error}") from error
    return rows


def check_appendable(path: Path) -> None:
    """Raise ``BenchmarkError`` if rows cannot be added to ``path``: better before an hour of measuring than after."""
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
        raise BenchmarkError(f"{path}: cannot be written: {error.strerror or error}") from error
    if last not in (b"", b"\n"):
        raise BenchmarkError(f"{path}: the last line is cut off; remove it, or choose another file")
    read_rows(path)


def _fits(value: object, hint: Any) -> bool:
    if isinstance(hint, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    hint = get_origin(hint) or hint
    if isinstance(value, bool):
        return bool(hint is bool)
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, NoneType if hint is None else hint)
