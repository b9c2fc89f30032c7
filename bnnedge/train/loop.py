"""The one training loop; methods take part in it through the hooks of ``bnnedge/methods/method.py``.

The order of the data and its augmentation are functions of (seed, epoch), everything else that an epoch needs is in the
checkpoint, so a run that was stopped at any moment and resumed gives the weights of an uninterrupted one. On the CPU
they are bit-identical.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from bnnedge.config import RunConfig
from bnnedge.data.dataset import Dataset
from bnnedge.errors import BnnedgeError
from bnnedge.methods.method import Method
from bnnedge.train.checkpoint import Checkpoint, rng_state, write_atomically
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
    optimizer: torch.optim.Optimizer
    device: torch.device
    epoch: int = 0
    """Number of finished epochs."""
    best_epoch: int = 0
    best_val_top1: float = -1.0

    def checkpoint(self) -> Checkpoint:
        """The state as a file holds it."""
        return Checkpoint(
            config=self.config,
            dataset=self.dataset.info,
            epoch=self.epoch,
            best_epoch=self.best_epoch,
            best_val_top1=self.best_val_top1,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            rng=rng_state(),
        )


def make_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a resolved config over all parameters, in one group."""
    assert config.lr is not None and config.weight_decay is not None, "the config is not resolved"
    parameters = list(model.parameters())
    if config.optimizer == "sgd":
        momentum = config.momentum or 0.0
        return torch.optim.SGD(parameters, config.lr, momentum=momentum, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, config.lr, weight_decay=config.weight_decay)


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
    lr = learning_rate(config, epoch)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.model.eval()
    before = binary_weights(state.model)
    state.method.start_epoch(state.model, epoch, config.epochs)
    progress.start_epoch(epoch + 1, config.epochs)
    train = _train_steps(state, lr, progress)
    train_s = time.perf_counter() - started
    validation = evaluate(state.model, state.dataset, "val", state.device)
    weights = binary_weights(state.model)
    flips = flip_rates(before, weights)
    return {
        "epoch": epoch + 1,
        "lr": lr,
        "train_loss": train.loss,
        "train_top1": train.top1,
        "val_loss": _finite(validation.loss, "validation loss", epoch + 1, "its end", lr),
        "val_top1": validation.top1,
        "flip_rate": mean_of(flips.values()),
        "positive_fraction": mean_of(positive_fractions(weights).values()),
        **state.method.metrics(state.model),
        "layers": {n: {"flip_rate": flips[n], "positive_fraction": p} for n, p in positive_fractions(weights).items()},
        "images_per_s": train.images / train_s,
        "epoch_s": time.perf_counter() - started,
    }


def _train_steps(state: TrainingState, lr: float, progress: TrainingProgress) -> RunningMean:
    config, mean = state.config, RunningMean()
    state.model.train()
    generator = epoch_generator(config.seed, state.epoch)
    batches = state.dataset.batches("train", config.batch_size, generator, augment=True)
    for step, (images, labels) in enumerate(batches, start=1):
        images, labels = images.to(state.device), labels.to(state.device)
        state.optimizer.zero_grad()
        logits = state.model(images)
        loss = F.cross_entropy(logits, labels)
        value = _finite(float(loss.detach()), "training loss", state.epoch + 1, f"step {step}", lr)
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        state.method.after_step(state.model)
        mean.add(value, logits.detach(), labels)
        progress.step(mean.loss, mean.top1)
    return mean


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
        elif name != "epoch":
            board.add_scalar(name, value, row["epoch"])
    board.flush()


def _describe(row: dict[str, Any], state: TrainingState) -> str:
    left_s = row["epoch_s"] * (state.config.epochs - row["epoch"])
    return (
        f"epoch {row['epoch']}/{state.config.epochs}  lr {row['lr']:.3g}  loss {row['train_loss']:.4f}  "
        f"train {row['train_top1']:.1%}  val {row['val_top1']:.1%} (best {state.best_val_top1:.1%})  "
        f"flips {row['flip_rate']:.2%}  {row['epoch_s']:.1f} s, {left_s:.0f} s left"
    )


def restore(state: TrainingState, checkpoint: Checkpoint) -> None:
    """Load weights, optimizer and progress of ``checkpoint`` into a freshly made state; see ``set_rng_state`` too."""
    state.model.load_state_dict(checkpoint.model)
    state.optimizer.load_state_dict(checkpoint.optimizer)
    for field in dataclasses.fields(checkpoint):
        if field.name in ("epoch", "best_epoch", "best_val_top1"):
            setattr(state, field.name, getattr(checkpoint, field.name))
