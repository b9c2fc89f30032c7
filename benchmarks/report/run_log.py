"""What a run's folder says of its training: the numbers of each epoch, and which of them are scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnnedge.benchmarks.report.scores import named
from bnnedge.config import RunConfig
from bnnedge.errors import BenchmarkError
from bnnedge.tasks.task import Score

SPLITS = ("train", "val", "test")
"""Splits whose numbers a log may hold, as ``SPLIT_loss`` and ``SPLIT_SCORE``."""


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
