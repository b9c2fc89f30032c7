"""What a run's folder says of its training: the numbers of each epoch, and which of them are scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from bnnedge.benchmarks.report.scores import named
from bnnedge.config import MOST_EPOCHS, RunConfig
from bnnedge.errors import BenchmarkError
from bnnedge.files import read_within
from bnnedge.schema import Number, check, read_json
from bnnedge.tasks.task import Score
from bnnedge.train.run_folder import MOST_METRICS_BYTES

SPLITS = ("train", "val", "test")
"""Splits whose numbers a log may hold, as ``SPLIT_loss`` and ``SPLIT_SCORE``."""


@dataclass(frozen=True)
class _Nested:
    """The parts of a line that are not one number, as the schema of all lines."""

    epoch: Annotated[int, Field(ge=0, le=MOST_EPOCHS)] = 0
    layers: dict[str, dict[str, Number]] = dataclasses.field(default_factory=dict)
    phase: str = ""


_NESTED = tuple(field.name for field in dataclasses.fields(_Nested))


@dataclass(frozen=True)
class RunLog:
    """The epochs of a run."""

    name: str
    epochs: Sequence[dict[str, Any]]
    """The lines of metrics.jsonl, in order."""
    scores: Sequence[Score]
    """The scores that the lines hold."""


def read_run_log(run_dir: Path) -> RunLog:
    """The log of the run in ``run_dir``. Raises a ``BnnedgeError`` if it is missing or damaged."""
    epochs = read_metrics(run_dir)
    config = run_dir / "config.yaml"
    # Runs that were made before there were tasks name none, and all of them are classification.
    task = (RunConfig.read(config).task if config.is_file() else None) or "classification"
    found = {key.removeprefix("train_") for epoch in epochs for key in epoch if key.startswith("train_")}
    return RunLog(run_dir.name, epochs, named(sorted(found - {"loss"}), task))


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The epochs in ``run_dir``/metrics.jsonl, in order. Raises ``BenchmarkError`` if missing or damaged."""
    path = run_dir / "metrics.jsonl"
    lines = read_within(path, MOST_METRICS_BYTES, BenchmarkError).split(b"\n")
    epochs = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = read_json(line, where, BenchmarkError)
        if not isinstance(row, dict):
            raise BenchmarkError(f"{where}: expected a JSON object, found {type(row).__name__}")
        check({name: value for name, value in row.items() if name in _NESTED}, _Nested, where, BenchmarkError)
        check({n: v for n, v in row.items() if n not in _NESTED}, dict[str, Number | None], where, BenchmarkError)
        epochs.append(row)
    return epochs
