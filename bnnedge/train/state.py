"""The state of a run between two epochs, and its way into a checkpoint and back."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bnnedge.config import RunConfig
from bnnedge.data.dataset import Dataset
from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import binary_layers
from bnnedge.methods.method import Method, Phase
from bnnedge.tasks.task import Task
from bnnedge.train.assign import Optimizers, make_optimizers
from bnnedge.train.checkpoint import Checkpoint
from bnnedge.train.device import Forward, compiled
from bnnedge.train.distillation import Distillation
from bnnedge.train.distributed import ALONE, Group
from bnnedge.train.ema import Ema
from bnnedge.train.optimizer_state import load_optimizer
from bnnedge.train.rng import rng_state


@dataclass
class TrainingState:
    """Everything that one epoch reads and changes."""

    config: RunConfig
    dataset: Dataset
    model: nn.Module
    method: Method[Any]
    device: torch.device
    distillation: Distillation | None = None
    group: Group = ALONE
    epoch: int = 0
    """Number of finished epochs."""
    best_epoch: int = 0
    best_score: float | None = None
    """The first score of the best epoch of this phase, on the split that chooses; None if nothing was measured yet."""

    def __post_init__(self) -> None:
        self.phases = self.method.phases(self.config.epochs)
        shortest = min(phase.epochs for phase in self.phases)
        if (self.config.warm_up or 0) >= shortest:
            raise ConfigError(f"warm_up ({self.config.warm_up}) must be below the epochs of each phase ({shortest})")
        self.forward: Forward = compiled(self.model) if self.config.compile else self.model
        """The forward pass of training; evaluation calls the model itself."""
        self.enter_phase(0)

    @property
    def task(self) -> Task:
        """The task that the network learns."""
        return self.dataset.task

    @property
    def phase(self) -> Phase:
        return self.phases[self.phase_index]

    @property
    def epoch_in_phase(self) -> int:
        """The epoch that comes next, counted from 0 at the beginning of the phase."""
        return self.epoch - sum(phase.epochs for phase in self.phases[: self.phase_index])

    def enter_phase(self, index: int) -> None:
        """Set up phase ``index`` as the method wants it: fresh optimizers, a fresh average, no best epoch yet."""
        self.phase_index = index
        self.best_epoch, self.best_score = 0, None
        self.method.start_phase(self.model, index)
        steps = self.dataset.steps("train", self.config.batch_size)
        images = self.dataset.size("train")
        self.optimizers: Optimizers = make_optimizers(self.config, self.model, self.method, self.phase, steps, images)
        decay = self.config.ema
        self.ema = None if decay is None else Ema(self.model, decay, self.method.averages)

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """The model with the weights that are evaluated and exported: the averaged ones, if there are."""
        with self.ema.applied(self.model) if self.ema else nullcontext():
            yield

    def checkpoint(self) -> Checkpoint:
        """The state as a checkpoint holds it."""
        trained = self.model.state_dict()
        return Checkpoint(
            config=self.config,
            dataset=self.dataset.info,
            epoch=self.epoch,
            best_epoch=self.best_epoch,
            best_score=self.best_score,
            model=self.ema.weights if self.ema else trained,
            optimizers={name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            rng=rng_state(),
            binary_layers=list(binary_layers(self.model)),
            ema={"steps": self.ema.steps, "trained": trained} if self.ema else {},
        )


def phase_of(phases: tuple[Phase, ...], epoch: int) -> int:
    """Index of the phase that epoch ``epoch`` (from 0) belongs to."""
    ends = itertools.accumulate(phase.epochs for phase in phases)
    return sum(end <= epoch for end in ends)


def restore(state: TrainingState, checkpoint: Checkpoint) -> None:
    """Load weights, optimizers and progress of ``checkpoint`` into a freshly made state; see ``set_rng_state`` too."""
    state.enter_phase(phase_of(state.phases, checkpoint.epoch - 1))
    state.model.load_state_dict(checkpoint.ema["trained"] if state.ema else checkpoint.model)
    if state.ema:
        state.ema.load(checkpoint.model, checkpoint.ema["steps"])
    if set(checkpoint.optimizers) != set(state.optimizers):
        raise ValueError(f"it has optimizers {sorted(checkpoint.optimizers)}, expected {sorted(state.optimizers)}")
    for field in dataclasses.fields(checkpoint):
        if field.name in ("epoch", "best_epoch", "best_score"):
            setattr(state, field.name, getattr(checkpoint, field.name))
    steps = state.epoch_in_phase * state.dataset.steps("train", state.config.batch_size)
    for name, optimizer in state.optimizers.items():
        load_optimizer(optimizer, checkpoint.optimizers[name], steps, f"the optimizer {name!r}")
