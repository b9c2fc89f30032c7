"""What an int8 stem changes in a network: the first signs, and the scores of the task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bnnedge.export.evaluate import scores_of
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.runtimes.runtime import Images
from bnnedge.export.targets.target import Target
from bnnedge.tasks.task import Task, scores_text


@dataclass(frozen=True)
class Int8Stem:
    """What an int8 stem changed in the network. What was not measured is None or empty."""

    first_signs_changed: float | None
    """Share of the signs entering the first binary layer that are not the checkpoint's, in [0, 1]."""
    task: Task | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    """The task's scores of the file on the labelled samples, by name."""
    scores_fp32: Mapping[str, float] = field(default_factory=dict)
    """The same scores of the checkpoint."""
    samples: int = 0
    """Number of labelled samples."""

    def __str__(self) -> str:
        parts = []
        if self.first_signs_changed is not None:
            parts.append(f"{self.first_signs_changed:.2%} of the first signs differ")
        if self.task is not None:
            of_file, of_checkpoint = (scores_text(self.task, scores) for scores in (self.scores, self.scores_fp32))
            parts.append(f"{of_file} against {of_checkpoint} in fp32 ({self.samples} samples)")
        return f"stem int8: {'; '.join(parts) or 'its effect was not measured'}"

    def to_metadata(self) -> dict[str, Any]:
        """The entry of a file's metadata."""
        entry: dict[str, Any] = {"precision": "int8", "first_signs_changed": self.first_signs_changed}
        if self.task is not None:
            measured = {"scores": dict(self.scores), "scores_fp32": dict(self.scores_fp32), "samples": self.samples}
            entry |= {"task": self.task.name, **measured}
        return entry


def measure_effect(
    writer: Target,
    deployed: nn.Module,
    data: bytes,
    first_signs_changed: float | None,
    task: Task | None,
    labelled: tuple[Images, NDArray[Any]] | None,
) -> Int8Stem:
    """The scores of file ``data`` and of the checkpoint with its float stem, on ``labelled`` inputs and targets."""
    runtimes = [RUNTIMES.load(name) for name in writer.runtimes]
    runtime = next((r for r in runtimes if r.unavailable() is None), None)
    if task is None or labelled is None or runtime is None:
        return Int8Stem(first_signs_changed)

    @torch.no_grad()
    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        return deployed(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]

    of_file, of_checkpoint = (scores_of(each, task, *labelled) for each in (runtime.open(data).run, run))
    return Int8Stem(first_signs_changed, task, of_file, of_checkpoint, len(labelled[1]))
