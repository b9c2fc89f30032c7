"""The contract of a task: what a network must output, its loss, its scores, and how these are computed.

Training, the evaluation of a run and of a file, and a benchmark on a device without PyTorch count with the same
functions: ``sums`` uses only what NumPy arrays and PyTorch tensors share. So importing a task imports no torch; the
functions of training alone (``loss``, ``soft_loss``, ``average``) import it themselves.

A data set's sample is a pair of input and target. ``samples`` makes the task's own pair of it, which is the same pair
for a task that the data set was made for.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Array = Any
"""A NumPy array or a PyTorch tensor."""


@dataclass(frozen=True)
class Score:
    """One number that says how well a network does its task."""

    name: str
    """The key in result files, metrics and benchmark rows, for example ``top1``."""
    label: str
    """The name that people read, for example ``top-1``."""
    unit: str = ""
    """``%`` for a share from 0 to 1, which is then shown in percent; otherwise what follows the number."""
    higher_is_better: bool = True

    def text(self, value: float) -> str:
        """``value`` with its unit."""
        if self.unit == "%":
            return f"{value:.2%}"
        return f"{value:.4g}{f' {self.unit}' if self.unit else ''}"

    def is_better(self, value: float, than: float) -> bool:
        """Whether ``value`` is strictly better; every number is better than NaN, and NaN is never better."""
        if math.isnan(than):
            return not math.isnan(value)
        return value > than if self.higher_is_better else value < than


class Task(ABC):
    """One kind of problem that a network can be trained for."""

    name: ClassVar[str]
    """The name in ``TASKS``."""

    def __init__(self, outputs: int) -> None:
        """``outputs`` is the number of channels of the network's output, which ``outputs_for`` gives."""
        self.outputs = outputs

    @classmethod
    def outputs_for(cls, classes: int, channels: int) -> int:
        """Output channels for a data set with ``classes`` classes (0 if it has none) and ``channels`` input channels.

        Raises ``ConfigError`` for a data set that the task cannot be trained on.
        """
        if classes < 1:
            raise ConfigError(f"task {cls.name} needs a data set with classes, and this one has none")
        return classes

    @property
    @abstractmethod
    def scores(self) -> tuple[Score, ...]:
        """What is measured; the first score picks the best checkpoint."""

    @abstractmethod
    def output_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of the network's output for one image of ``height`` x ``width`` pixels, without the batch."""

    def samples(self, inputs: Array, targets: Array) -> tuple[Array, Array]:
        """The task's inputs and targets [N, ...], from a data set's normalised inputs and its targets."""
        return inputs, targets

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What training minimizes, a mean over the samples of the batch."""

    @abstractmethod
    def soft_loss(self, outputs: Tensor, teacher_outputs: Tensor, temperature: float) -> Tensor:
        """The loss against a teacher's outputs, a mean over the samples; no gradient flows to the teacher."""

    @property
    def number_of_sums(self) -> int:
        """Length of the vector that ``sums`` returns."""
        return len(self.scores)

    @abstractmethod
    def sums(self, outputs: Array, targets: Array) -> Array:
        """Sums over the samples of a batch, from which ``score`` computes the scores: a vector [``number_of_sums``] of
        the same library as ``outputs``, for example ``library_of(outputs).stack([...])``."""

    @abstractmethod
    def score(self, sums: NDArray[np.float64], samples: int) -> dict[str, float]:
        """The value of each of ``scores``, by name, from the sums over all samples and their number."""

    @abstractmethod
    def average(self, outputs: Tensor, how: Literal["probabilities", "logits"]) -> Tensor:
        """One output [N, ...] of those of several networks [S, N, ...]: the average of what the task predicts.

        ``logits`` averages the outputs themselves. ``probabilities`` averages what they mean, where that differs.
        """

    @abstractmethod
    def agreement(self, found: NDArray[Any], expected: NDArray[Any]) -> float:
        """Share, from 0 to 1, of what is predicted alike by two batches of outputs [N, ...]."""


class Tally:
    """Loss and scores over the samples that were seen so far."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.samples = 0
        self.loss_sum = 0.0
        self.sums = np.zeros(task.number_of_sums)
        """The task's sums, float64 [``number_of_sums``]."""

    def add(self, outputs: Array, targets: Array) -> None:
        """Count the samples of a batch of NumPy arrays."""
        self.add_sums(len(targets), self.task.sums(outputs, targets))

    def add_sums(self, samples: int, sums: Array, loss_sum: float = 0.0) -> None:
        """Count ``samples`` samples whose sums and whose sum of losses are known."""
        self.samples += samples
        self.loss_sum += loss_sum
        self.sums = self.sums + np.asarray(sums, np.float64)

    @property
    def loss(self) -> float:
        """Mean loss of a sample; 0 if none was seen."""
        return self.loss_sum / max(self.samples, 1)

    @property
    def scores(self) -> dict[str, float]:
        """The task's scores, by name. Raises ``ValueError`` if no sample was seen."""
        if self.samples == 0:
            raise ValueError("no sample was counted, so there are no scores")
        return self.task.score(self.sums, self.samples)

    @property
    def first(self) -> float:
        """The value of the task's first score."""
        return self.scores[self.task.scores[0].name]


def library_of(array: Array) -> Any:
    """The module whose functions take ``array``: ``numpy`` or ``torch``."""
    return sys.modules[type(array).__module__.partition(".")[0]]


def scores_text(task: Task, scores: Mapping[str, float]) -> str:
    """All scores that were measured, in one line."""
    return ", ".join(f"{s.label} {s.text(scores[s.name])}" for s in task.scores if s.name in scores)
