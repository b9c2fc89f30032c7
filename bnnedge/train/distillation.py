"""Knowledge distillation: a trained network's outputs as soft targets, for any method and task."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bnnedge.tasks.task import Task


class Distillation:
    """The loss ``(1 - w) task.loss(targets) + w task.soft_loss(teacher)``, the teacher frozen and in eval mode."""

    def __init__(
        self,
        teacher: nn.Module,
        predict: Callable[[nn.Module, Tensor], Tensor],
        task: Task,
        weight: float,
        temperature: float,
    ) -> None:
        """``predict`` is that of the teacher's method, ``weight`` w from 0 to 1."""
        self.teacher = teacher.eval().requires_grad_(False)
        self.predict, self.task, self.weight, self.temperature = predict, task, weight, temperature

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> Tensor:
        """The teacher's outputs [N, ...]."""
        return self.predict(self.teacher, inputs)

    def loss(self, outputs: Tensor, targets: Tensor, teacher_outputs: Tensor) -> Tensor:
        """Mean over the batch."""
        soft = self.weight * self.task.soft_loss(outputs, teacher_outputs, self.temperature)
        return soft if self.weight == 1 else soft + (1 - self.weight) * self.task.loss(outputs, targets)
