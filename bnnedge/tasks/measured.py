"""What was measured of a network on one split of a data set, by whichever runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bnnedge.tasks.task import Task, scores_text


@dataclass(frozen=True)
class Measured:
    """Scores of a run or of a file."""

    runtime: str
    """What ran the network: a name in ``RUNTIMES``, or PyTorch and its device."""
    dataset: str
    """Name in ``DATASETS``."""
    samples: int
    task: Task
    scores: Mapping[str, float]
    """The task's scores by name."""
    loss: float | None = None
    """The task's loss, a mean over the samples; None where it was not computed."""

    def text(self) -> str:
        """Scores and loss in one line."""
        loss = "" if self.loss is None else f", loss {self.loss:.4f}"
        return f"{scores_text(self.task, self.scores)}{loss}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        loss = {} if self.loss is None else {"loss": self.loss}
        facts = {"runtime": self.runtime, "dataset": self.dataset, "task": self.task.name, "samples": self.samples}
        return {**facts, **self.scores, **loss}
