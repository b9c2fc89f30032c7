"""Accuracy of an exported file on the data set that its metadata names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bnnedge.data.dataset import DatasetInfo, Split, load_dataset
from bnnedge.errors import BenchmarkError
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.runtimes.choose import choose_runtime
from bnnedge.export.targets.target import read_file
from bnnedge.progress import shown

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
BATCH = 64
"""Images at a time; bounds the runtime's memory."""


@dataclass(frozen=True)
class FileAccuracy:
    """Top-1 of a file."""

    runtime: str
    dataset: str
    images: int
    top1: float
    """In [0, 1]."""


def evaluate_file(
    path: Path, split: Split, runtime: str = "auto", data_root: Path | None = None, console: Console | None = None
) -> FileAccuracy:
    """Run every image of ``split`` through the file; ``console`` shows a bar if it is a terminal.

    Raises as ``choose_runtime`` does, ``ExportError`` for a damaged file, ``DataError`` if its data set is not at hand.
    """
    file = read_file(path)
    trained = file.metadata.get("dataset")
    if not trained:
        raise BenchmarkError(f"{path} does not name its data set; measure its accuracy by `bnnedge bench --data NAME`")
    info = DatasetInfo.from_dict(trained)
    name = choose_runtime(file.target.runtimes, runtime, str(path))
    dataset = load_dataset(info.name, info.image_size, data_root)
    session = RUNTIMES.load(name).open(file.data)
    size, right = dataset.size(split), 0
    for images, labels in shown(dataset.batches(split, BATCH), "evaluating", -(-size // BATCH), console):
        right += _hits(session.run, images.numpy(), labels.numpy())
    return FileAccuracy(name, info.name, size, right / size)


def top1(run: Run, images: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of ``images`` for which the largest output of ``run`` is that of its label."""
    starts = range(0, len(labels), BATCH)
    return sum(_hits(run, images[i : i + BATCH], labels[i : i + BATCH]) for i in starts) / len(labels)


def _hits(run: Run, images: NDArray[np.float32], labels: NDArray[np.int64]) -> int:
    return int((run(images).argmax(1) == labels).sum())
