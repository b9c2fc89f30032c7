"""The one training loop; methods take part in it through the hooks of ``bnnedge/methods/method.py``.

The order of the data and its augmentation are functions of (seed, epoch), everything else that an epoch needs is in the
checkpoint, so a run that was stopped at any moment and resumed gives the weights of an uninterrupted one. On the CPU
they are bit-identical.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from bnnedge.config import RunConfig
from bnnedge.data.dataset import Dataset
from bnnedge.errors import BnnedgeError, ConfigError
from bnnedge.layers.binary_layers import binary_layers
from bnnedge.methods.method import Method, Phase
from bnnedge.train.assign import Optimizers, make_optimizers
from bnnedge.train.checkpoint import Checkpoint, rng_state, write_atomically
from bnnedge.train.distillation import Distillation
from bnnedge.train.metrics import RunningMean, binary_weights, evaluate, flip_rates, mean_of, positive_fractions
from bnnedge.train.progress import TrainingProgress
from bnnedge.train.run_folder import RunFolder
from bnnedge.train.schedule import learning_rate


class DivergenceError(BnnedgeError):
    """Training left the range of finite numbers."""

    exit_code = 1


@dataclass
class TrainingState:
    """Everything that one epoch reads and changes."""

    config: RunConfig
    dataset: Dataset
    model: nn.Module
    method: Method[Any]
    device: torch.device
    distillation: Distillation | None = None
    epoch: int = 0
    """Number of finished epochs."""
    best_epoch: int = 0
    best_val_top1: float = -1.0
    """Of the phase at hand."""

    def __post_init__(self) -> None:
        self.phases = self.method.phases(self.config.epochs)
        shortest = min(phase.epochs for phase in self.phases)
        if (self.config.warm_up or 0) >= shortest:
            raise ConfigError(f"warm_up ({self.config.warm_up}) must be below the epochs of each phase ({shortest})")
        self.enter_phase(0)

    @property
    def phase(self) -> Phase:
        return self.phases[self.phase_index]

    @property
    def epoch_in_phase(self) -> int:
        """The epoch that comes next, counted from 0 at the beginning of the phase."""
        return self.epoch - sum(phase.epochs for phase in self.phases[: self.phase_index])

    def enter_phase(self, index: int) -> None:
        """Set up phase ``index`` as the method wants it, with fresh optimizers and no best epoch yet."""
        self.phase_index = index
        self.best_epoch, self.best_val_top1 = 0, -1.0
        self.method.start_phase(self.model, index)
        steps = self.dataset.steps("train", self.config.batch_size)
        images = self.dataset.size("train")
        self.optimizers: Optimizers = make_optimizers(self.config, self.model, self.method, self.phase, steps, images)

    def checkpoint(self) -> Checkpoint:
        """The state as a file holds it."""
        return Checkpoint(
            config=self.config,
            dataset=self.dataset.info,
            epoch=self.epoch,
            best_epoch=self.best_epoch,
            best_val_top1=self.best_val_top1,
            model=self.model.state_dict(),
            optimizers={name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            rng=rng_state(),
        )


def phase_of(phases: tuple[Phase, ...], epoch: int) -> int:
    """Index of the phase that epoch ``epoch`` (from 0) belongs to."""
    ends = itertools.accumulate(phase.epochs for phase in phases)
    return sum(end <= epoch for end in ends)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The source of an epoch's data order and augmentation."""
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


def fit(state: TrainingState, folder: RunFolder) -> None:
    """Train the epochs that are left, writing metrics and checkpoints after each."""
    epochs = state.config.epochs
    steps = state.dataset.steps("train", state.config.batch_size) * (epochs - state.epoch)
    with (
        SummaryWriter(str(folder.path), purge_step=state.epoch + 1) as board,
        TrainingProgress(steps) as progress,
    ):
        while state.epoch < epochs:
            row = _run_epoch(state, progress)
            improved = row["val_top1"] > state.best_val_top1
            state.epoch = row["epoch"]
            if improved:
                state.best_epoch, state.best_val_top1 = row["epoch"], row["val_top1"]
            _save(state, folder, row, improved)
            _write_events(board, row)
            line = _describe(row, state)
            folder.log(line)
            progress.line(line)


def _save(state: TrainingState, folder: RunFolder, row: dict[str, Any], improved: bool) -> None:
    """Metrics, then last, then best: whatever a crash cuts off, ``restore`` can make good from ``last.ckpt``."""
    folder.append_metrics(row)
    data = state.checkpoint().to_bytes()
    write_atomically(folder.last, data)
    if improved:
        write_atomically(folder.best, data)


def _run_epoch(state: TrainingState, progress: TrainingProgress) -> dict[str, Any]:
    config, epoch = state.config, state.epoch
    started = time.perf_counter()
    if state.phase_index != phase_of(state.phases, epoch):
        state.enter_phase(state.phase_index + 1)
    lr = learning_rate(config, state.epoch_in_phase, state.phase.epochs)
    state.model.eval()
    before = binary_weights(state.model)
    state.method.start_epoch(state.model, state.epoch_in_phase, state.phase.epochs)
    progress.start_epoch(epoch + 1, config.epochs)
    train = _train_steps(state, progress)
    train_s = time.perf_counter() - started
    validation = evaluate(state.model, state.dataset, "val", state.device, state.method.predict)
    layers = _layer_metrics(state, before)
    kinds = dict.fromkeys(kind for numbers in layers.values() for kind in numbers)
    return {
        "epoch": epoch + 1,
        **({"phase": state.phase.name} if len(state.phases) > 1 else {}),
        "lr": lr,
        "train_loss": train.loss,
        "train_top1": train.top1,
        "val_loss": _finite(validation.loss, "validation loss", epoch + 1, "its end", lr),
        "val_top1": validation.top1,
        **{kind: mean_of(numbers[kind] for numbers in layers.values() if kind in numbers) for kind in kinds},
        "layers": layers,
        "images_per_s": train.images / state.method.passes / train_s,
        "epoch_s": time.perf_counter() - started,
    }


def _layer_metrics(state: TrainingState, before: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    weights = binary_weights(state.model)
    flips, positive = flip_rates(before, weights), positive_fractions(weights)
    return {
        name: {"flip_rate": flips[name], "positive_fraction": positive[name], **state.method.layer_metrics(layer)}
        for name, layer in binary_layers(state.model).items()
    }


def _train_steps(state: TrainingState, progress: TrainingProgress) -> RunningMean:
    config, mean = state.config, RunningMean()
    state.model.train()
    generator = epoch_generator(config.seed, state.epoch)
    batches = state.dataset.batches("train", config.batch_size, generator, augment=True)
    steps = state.dataset.steps("train", config.batch_size)
    for step, (images, labels) in enumerate(batches):
        images, labels = images.to(state.device), labels.to(state.device)
        lr = set_learning_rate(state, step / steps)
        for loss, logits in train_step(state, images, labels):
            _finite(loss, "training loss", state.epoch + 1, f"step {step + 1}", lr)
            mean.add(loss, logits, labels)
        progress.step(mean.loss, mean.top1)
    return mean


def train_step(state: TrainingState, images: Tensor, labels: Tensor) -> list[tuple[float, Tensor]]:
    """One step of every optimizer on one batch; loss and logits [B, C] of each pass.

    A loss that is not finite ends the step before any weight has changed.
    """
    method, found = state.method, []
    for optimizer in state.optimizers.values():
        optimizer.zero_grad()
    targets = state.distillation.targets(images) if state.distillation else None
    for _ in range(method.passes):
        logits = state.model(images)
        loss = _loss(state, logits, labels, targets)
        found.append((float(loss.detach()), logits.detach()))
        if not math.isfinite(found[-1][0]):
            return found
        (loss / method.passes).backward()  # type: ignore[no-untyped-call]
    method.before_step(state.model)
    for optimizer in state.optimizers.values():
        optimizer.step()
    method.after_step(state.model)
    return found


def _loss(state: TrainingState, logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    if state.distillation is None or targets is None:
        return F.cross_entropy(logits, labels)
    return state.distillation.loss(logits, labels, targets)


def set_learning_rate(state: TrainingState, done: float) -> float:
    """Learning rate of the run's optimizer after ``done`` of the epoch, from 0 to 1."""
    time = state.epoch_in_phase + (done if state.config.lr_every == "step" else 0)
    lr = learning_rate(state.config, time, state.phase.epochs)
    if "run" in state.optimizers:
        for group in state.optimizers["run"].param_groups:
            group["lr"] = lr
    return lr


def _finite(loss: float, what: str, epoch: int, where: str, lr: float) -> float:
    if not math.isfinite(loss):
        raise DivergenceError(
            f"{what} is {loss} in epoch {epoch} at {where} with learning rate {lr:.3g}; a lower --lr may help"
        )
    return loss


def _write_events(board: SummaryWriter, row: dict[str, Any]) -> None:
    for name, value in row.items():
        if name == "layers":
            for layer, numbers in value.items():
                for kind, number in numbers.items():
                    board.add_scalar(f"{kind}/{layer}", number, row["epoch"])
        elif name not in ("epoch", "phase"):
            board.add_scalar(name, value, row["epoch"])
    board.flush()


def _describe(row: dict[str, Any], state: TrainingState) -> str:
    phase = f" ({row['phase']})" if "phase" in row else ""
    left_s = row["epoch_s"] * (state.config.epochs - row["epoch"])
    return (
        f"epoch {row['epoch']}/{state.config.epochs}{phase}  lr {row['lr']:.3g}  loss {row['train_loss']:.4f}  "
        f"train {row['train_top1']:.1%}  val {row['val_top1']:.1%} (best {state.best_val_top1:.1%})  "
        f"flips {row['flip_rate']:.2%}  {row['epoch_s']:.1f} s, {left_s:.0f} s left"
    )


def restore(state: TrainingState, checkpoint: Checkpoint) -> None:
    """Load weights, optimizers and progress of ``checkpoint`` into a freshly made state; see ``set_rng_state`` too."""
    state.enter_phase(phase_of(state.phases, checkpoint.epoch - 1))
    state.model.load_state_dict(checkpoint.model)
    if set(checkpoint.optimizers) != set(state.optimizers):
        raise ValueError(f"it has optimizers {sorted(checkpoint.optimizers)}, expected {sorted(state.optimizers)}")
    for name, optimizer in state.optimizers.items():
        optimizer.load_state_dict(checkpoint.optimizers[name])
    for field in dataclasses.fields(checkpoint):
        if field.name in ("epoch", "best_epoch", "best_val_top1"):
            setattr(state, field.name, getattr(checkpoint, field.name))
