"""Scores of an exported file on the data set that its metadata names."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bnnedge.data.dataset import Split, load_dataset_as
from bnnedge.errors import BenchmarkError, ExportError
from bnnedge.export.description import describe_metadata
from bnnedge.export.runtimes.choose import choose_runtime
from bnnedge.export.runtimes.isolated import IsolatedFile
from bnnedge.export.targets.target import read_file
from bnnedge.progress import shown
from bnnedge.tasks.measured import Measured
from bnnedge.tasks.task import Tally, Task

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
BATCH = 64
"""Samples at a time; bounds the runtime's memory."""


def evaluate_file(
    path: Path, split: Split, runtime: str = "auto", data_root: Path | None = None, console: Console | None = None
) -> Measured:
    """Run every sample of ``split`` through the file, made as its preprocessing record says.

    The runtime runs in a process of its own. ``console`` shows a bar if it is a terminal. Raises as ``choose_runtime``
    does, ``ExportError`` for a damaged file, one that the runtime cannot run, or an output that is not finite or not of
    the task's shape, ``DataError`` if its data set is not at hand.
    """
    file = read_file(path)
    described = describe_metadata(file.metadata, str(path))
    if described is None:
        raise BenchmarkError(f"{path} does not name its data set; measure its accuracy by `bnnedge bench --data NAME`")
    info = described.info
    name = choose_runtime(file.target.runtimes, runtime, str(path))
    tally = Tally(described.task)
    batch_bytes = 4 * BATCH * math.prod(info.preprocessing.input_shape)
    with IsolatedFile(str(path), file.data, batch_bytes) as isolated:
        session = isolated.load(name)
        dataset = load_dataset_as(info, data_root)
        batches = -(-dataset.size(split) // BATCH)
        for inputs, targets in shown(dataset.batches(split, BATCH), "evaluating", batches, console):
            outputs = session.run(inputs.numpy())
            _check_outputs(outputs, (len(inputs), *described.output_shape), path, name)
            tally.add(outputs, targets.numpy())
    return Measured(name, info.name, tally.samples, described.task, tally.scores)


def _check_outputs(outputs: NDArray[Any], expected: tuple[int, ...], path: Path, runtime: str) -> None:
    if outputs.shape != expected:
        raise ExportError(
            f"{path}: expected an output of {list(expected)}, as its task has, found {list(outputs.shape)}"
        )
    if not np.isfinite(outputs).all():
        raise ExportError(f"{path}: an output is not finite; the file or {runtime} is broken")


def scores_of(run: Run, task: Task, inputs: NDArray[np.float32], targets: NDArray[Any]) -> dict[str, float]:
    """The task's scores of what ``run`` makes of ``inputs`` [N, C, H, W] with ``targets`` [N, ...]."""
    tally = Tally(task)
    for start in range(0, len(targets), BATCH):
        tally.add(run(inputs[start : start + BATCH]), targets[start : start + BATCH])
    return tally.scores
