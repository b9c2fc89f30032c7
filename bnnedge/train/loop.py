"""The one training loop; methods take part in it through the hooks of ``bnnedge/methods/method.py``.

The order of the data and its augmentation are functions of (seed, epoch), everything else that an epoch needs is in the
checkpoint, so a run that was stopped at any moment and resumed gives the weights of an uninterrupted one. On the CPU
they are bit-identical, with several processes if their number stays the same. With another number they are equal but
for the rounding of sums.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from bnnedge.errors import BnnedgeError
from bnnedge.files import write_atomically
from bnnedge.layers.binary_layers import binary_layers
from bnnedge.progress import TrainingProgress
from bnnedge.tasks.task import Tally
from bnnedge.train.constant_signs import warn_of_constant_signs
from bnnedge.train.global_batch_norm import average_statistics
from bnnedge.train.learning_rate import learning_rate
from bnnedge.train.loader import load_parts
from bnnedge.train.metrics import binary_weights, evaluate, flip_rates, mean_of, positive_fractions
from bnnedge.train.rng import epoch_generator, mixed_seed, rng_state, set_rng_state
from bnnedge.train.run_folder import RunFolder
from bnnedge.train.state import TrainingState, phase_of
from bnnedge.train.step import step_on_parts


class DivergenceError(BnnedgeError):
    """Training left the range of finite numbers."""

    exit_code = 1


def fit(state: TrainingState, folder: RunFolder) -> None:
    """Train the epochs that are left; the main process writes metrics and checkpoints after each."""
    epochs, group = state.config.epochs, state.group
    steps = state.dataset.steps("train", state.config.batch_size) * (epochs - state.epoch)
    board = SummaryWriter(str(folder.path), purge_step=state.epoch + 1) if group.is_main else None
    with board or nullcontext(), TrainingProgress(steps, silent=not group.is_main) as progress:
        while state.epoch < epochs:
            row = _run_epoch(state, progress)
            state.epoch = row["epoch"]
            improved = _note_best(state, row)
            if state.epoch == 1 and group.is_main:
                warn_of_constant_signs(state.model, state.dataset, state.device)
            group.main_only(partial(_record, state, folder, board, row, improved))
            progress.line(_describe(row, state))


def _note_best(state: TrainingState, row: dict[str, Any]) -> bool:
    """Whether this epoch's weights are the best so far; without a split that chooses, the last ones are."""
    score = state.task.scores[0]
    value = row.get(f"{state.config.validate_on}_{score.name}")
    if value is not None and state.best_score is not None and not score.is_better(value, state.best_score):
        return False
    state.best_epoch, state.best_score = row["epoch"], value
    return True


def _record(
    state: TrainingState, folder: RunFolder, board: SummaryWriter | None, row: dict[str, Any], improved: bool
) -> None:
    assert board is not None, "the main process alone records"
    _save(state, folder, row, improved)
    _write_events(board, row)
    folder.log(_describe(row, state))


def _save(state: TrainingState, folder: RunFolder, row: dict[str, Any], improved: bool) -> None:
    """Write metrics, then ``last.ckpt``, then ``best.ckpt``: from ``last.ckpt`` a resumed run repairs the other two."""
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
    _align(state)
    progress.start_epoch(epoch + 1, config.epochs)
    train = _train_steps(state, progress)
    train_s = time.perf_counter() - started
    chosen_on = _evaluate_choice(state, lr)
    _check_weights(state, lr)
    layers = _layer_metrics(state, before)
    kinds = dict.fromkeys(kind for numbers in layers.values() for kind in numbers)
    return {
        "epoch": epoch + 1,
        **({"phase": state.phase.name} if len(state.phases) > 1 else {}),
        "lr": lr,
        "train_loss": train.loss,
        **{f"train_{name}": value for name, value in train.scores.items()},
        **chosen_on,
        **{kind: mean_of(numbers[kind] for numbers in layers.values() if kind in numbers) for kind in kinds},
        "layers": layers,
        "images_per_s": train.samples / state.method.passes / train_s,
        "epoch_s": time.perf_counter() - started,
    }


def _evaluate_choice(state: TrainingState, lr: float) -> dict[str, float]:
    """Loss and scores on the split that chooses the best epoch, if there is one."""
    split = state.config.validate_on
    if not state.dataset.has(split):
        return {}
    with state.evaluated():
        found = evaluate(state.model, state.dataset, split, state.device, state.method.predict, state.group)
    loss = _finite(found.loss, f"{split} loss", state.epoch + 1, "its end", lr)
    return {f"{split}_loss": loss, **{f"{split}_{name}": value for name, value in found.scores.items()}}


def _layer_metrics(state: TrainingState, before: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    weights = binary_weights(state.model)
    flips, positive = flip_rates(before, weights), positive_fractions(weights)
    return {
        name: {"flip_rate": flips[name], "positive_fraction": positive[name], **state.method.layer_metrics(layer)}
        for name, layer in binary_layers(state.model).items()
    }


def _align(state: TrainingState) -> None:
    """Give every process the main one's weights, and random numbers as the method needs them."""
    group = state.group
    if group.size == 1:
        return
    group.broadcast_(state.model.state_dict().values())
    rng = group.main_only(rng_state)
    if state.method.samples_weights:
        set_rng_state(rng)
    elif not group.is_main:
        torch.manual_seed(mixed_seed(state.config.seed, state.epoch, group.rank))


def _train_steps(state: TrainingState, progress: TrainingProgress) -> Tally:
    config, group, tally = state.config, state.group, Tally(state.task)
    state.model.train()
    generator = epoch_generator(config.seed, state.epoch)
    batches = state.dataset.plan("train", config.batch_size, generator, augment=True)
    steps, first = state.dataset.steps("train", config.batch_size), state.task.scores[0]
    for step, (parts, size) in enumerate(load_parts(batches, group, config.accumulate, state.device)):
        lr = set_learning_rate(state, step / steps)
        found = step_on_parts(state, parts, size)
        _finite(found.loss, "training loss", state.epoch + 1, f"step {step + 1}", lr)
        tally.add_sums(found.samples, found.sums, found.loss_sum)
        progress.step(tally.loss, first.text(tally.first))
    if not config.sync_batch_norm:
        average_statistics([state.model.state_dict(), *([state.ema.weights] if state.ema else [])], group)
    return tally


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


def _check_weights(state: TrainingState, lr: float) -> None:
    """Raise ``DivergenceError`` for weights that are not finite: behind a sign, the loss may not show it."""
    for name, parameter in state.model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise DivergenceError(
                f"{name} holds NaN or infinity after epoch {state.epoch + 1} with learning rate {lr:.3g}; a lower --lr "
                "may help"
            )


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
    score, split = state.task.scores[0], state.config.validate_on
    chosen_on = ""
    if state.best_score is not None:
        value = row[f"{split}_{score.name}"]
        chosen_on = f"{split} {score.text(value)} (best {score.text(state.best_score)})  "
    return (
        f"epoch {row['epoch']}/{state.config.epochs}{phase}  lr {row['lr']:.3g}  loss {row['train_loss']:.4f}  "
        f"{score.label}: train {score.text(row[f'train_{score.name}'])}  {chosen_on}"
        f"flips {row['flip_rate']:.2%}  {row['epoch_s']:.1f} s, {left_s:.0f} s left"
    )
