"""Classification: one of several classes for each image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from bnnedge.tasks.task import Array, Score, Task, library_of

if TYPE_CHECKING:
    from torch import Tensor

TOP1 = Score("top1", "top-1", "%")
TOP5 = Score("top5", "top-5", "%")


class Classification(Task):
    """Logits [N, C] for C classes and labels [N] from 0 to C - 1.

    The loss is the cross-entropy ``-mean_n log softmax(logits_n)[label_n]``. Top-k is the share of images whose label
    is among the k classes with the largest logits; of equal logits the class with the smaller number comes first, as
    in ``argmax``. Top-5 is measured where there are more than five classes.
    """

    name: ClassVar[str] = "classification"

    @property
    def scores(self) -> tuple[Score, ...]:
        return (TOP1, TOP5) if self.outputs > 5 else (TOP1,)

    def output_shape(self, height: int, width: int) -> tuple[int, ...]:
        return (self.outputs,)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from torch.nn import functional as F

        return F.cross_entropy(outputs, targets)

    def soft_loss(self, outputs: Tensor, teacher_outputs: Tensor, temperature: float) -> Tensor:
        """``-T^2 mean_n sum_c p_nc log q_nc`` with p, q the softmax of teacher's and student's logits over T.

        It exceeds ``T^2 KL(p || q)`` by T^2 times the teacher's entropy. Its gradient at the student's logits is
        ``T (q - p) / N``. Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2; with T = 1 it is the distributional
        loss of ReActNet (Liu et al. 2020, arXiv:2003.03488, eq. 6) up to a constant.
        """
        from torch.nn import functional as F

        targets = (teacher_outputs.detach() / temperature).softmax(1)
        return temperature**2 * F.cross_entropy(outputs / temperature, targets)

    def sums(self, outputs: Array, targets: Array) -> Array:
        """Images whose label is in the first place and, if top-5 is measured, in the first five; NaN is never a hit."""
        library = library_of(outputs)
        number = library.ones_like(outputs[:1], dtype=library.int64).cumsum(1) - 1  # [1, C]: 0 .. C - 1
        label = targets[:, None]
        own = library.amax(library.where(number == label, outputs, -math.inf), 1)[:, None]
        # NaN compares false, so a class is behind the label's only if both logits are numbers.
        behind = ((outputs < own) | ((outputs == own) & (number >= label))).sum(1)
        ahead = self.outputs - behind
        return library.stack([(ahead < count).sum() for count in (1, 5)[: len(self.scores)]])

    def score(self, sums: NDArray[np.float64], samples: int) -> dict[str, float]:
        return {score.name: float(hits) / samples for score, hits in zip(self.scores, sums, strict=True)}

    def average(self, outputs: Tensor, how: Literal["probabilities", "logits"]) -> Tensor:
        """Mean logits, or the logarithm of the mean probabilities, of logits [S, N, C, ...]."""
        if how == "logits":
            return outputs.mean(0)
        return outputs.log_softmax(2).logsumexp(0) - math.log(len(outputs))

    def agreement(self, found: NDArray[Any], expected: NDArray[Any]) -> float:
        """Share of positions with the same arg-max over the classes (axis 1; an output [N] has one class)."""
        rows = (*found.shape[:2], -1)
        return float((found.reshape(rows).argmax(1) == expected.reshape(rows).argmax(1)).mean())
