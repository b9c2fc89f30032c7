"""Knowledge distillation: a trained network's outputs as soft targets, for any method.

Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2; with weight and temperature 1, the default, it is the
distributional loss of ReActNet (Liu et al. 2020, arXiv:2003.03488, eq. 6) up to a constant.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def soft_cross_entropy(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """``-T^2 mean_b sum_c p_bc log q_bc`` with p, q the softmax of teacher's and student's logits [B, C] over T.

    It exceeds ``T^2 KL(p || q)`` by T^2 times the teacher's entropy. Its gradient at the student's logits is
    ``T (q - p) / B``; none flows to the teacher.
    """
    targets = (teacher_logits.detach() / temperature).softmax(1)
    return temperature**2 * F.cross_entropy(logits / temperature, targets)


class Distillation:
    """The loss ``(1 - w) CE(labels) + w soft_cross_entropy(teacher)``, the teacher frozen and in eval mode."""

    def __init__(
        self, teacher: nn.Module, predict: Callable[[nn.Module, Tensor], Tensor], weight: float, temperature: float
    ) -> None:
        """``predict`` is the teacher's method's; ``weight`` w from 0 to 1."""
        self.teacher = teacher.eval().requires_grad_(False)
        self.predict, self.weight, self.temperature = predict, weight, temperature

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """The teacher's logits [B, C]."""
        return self.predict(self.teacher, images)

    def loss(self, logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch; ``targets`` from ``targets``."""
        soft = self.weight * soft_cross_entropy(logits, targets, self.temperature)
        return soft if self.weight == 1 else soft + (1 - self.weight) * F.cross_entropy(logits, labels)
