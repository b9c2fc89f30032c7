"""One step of training: forward and backward passes over a batch, the method's hooks, the optimizers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bnnedge.tasks.task import Tally
from bnnedge.train.device import autocast
from bnnedge.train.loader import Parts, to_device
from bnnedge.train.rng import rng_state, set_rng_state
from bnnedge.train.state import TrainingState


def train_step(state: TrainingState, inputs: Tensor, targets: Tensor) -> Tally:
    """One step of every optimizer on one batch. Returns loss and scores over the batch and all passes.

    A loss that is not finite ends the step before any weight has changed.
    """
    parts = state.group.parts(inputs, targets, state.config.accumulate)
    return step_on_parts(state, to_device(parts, state.device), len(targets))


def step_on_parts(state: TrainingState, parts: Parts, batch_size: int) -> Tally:
    """``train_step`` on this process's ``parts`` of a batch of ``batch_size`` samples."""
    method = state.method
    for optimizer in state.optimizers.values():
        optimizer.zero_grad()
    totals = _backward(state, parts, batch_size)
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    state.group.sum_([totals, *gradients])
    loss_sum, interrupted, *sums = totals.tolist()  # the one moment at which a GPU is waited for
    if interrupted:
        raise KeyboardInterrupt
    found = Tally(state.task)
    found.add_sums(batch_size * method.passes, sums, loss_sum)
    if not math.isfinite(found.loss):
        return found
    method.before_step(state.model)
    for optimizer in state.optimizers.values():
        optimizer.step()
    method.after_step(state.model)
    if state.ema:
        state.ema.update(state.model)
    return found


def _backward(state: TrainingState, parts: Parts, batch_size: int) -> Tensor:
    """All forward and backward passes of a step.

    Returns float64 [2 + the task's sums]: the sum of the losses, 1 if this process was interrupted, the task's sums.
    """
    method, config, task = state.method, state.config, state.task
    totals = torch.zeros(2 + task.number_of_sums, dtype=torch.float64, device=state.device)
    totals[1] = state.group.interrupted
    for _ in range(method.passes):
        # All micro-batches of a pass see the same random weights, as one batch would.
        rng = rng_state() if method.samples_weights and len(parts) > 1 else None
        for inputs, targets in parts:
            if rng is not None:
                set_rng_state(rng)
            with autocast(state.device, config.precision):
                taught = state.distillation.outputs(inputs) if state.distillation else None
                outputs = state.forward(inputs)
                loss = _loss(state, outputs, targets, taught)
            (loss / (method.passes * (batch_size / len(targets)))).backward()  # type: ignore[no-untyped-call]
            totals[0] += loss.detach().double() * len(targets)
            totals[2:] += task.sums(outputs.detach(), targets)
    return totals


def _loss(state: TrainingState, outputs: Tensor, targets: Tensor, taught: Tensor | None) -> Tensor:
    if state.distillation is None or taught is None:
        return state.task.loss(outputs, targets)
    return state.distillation.loss(outputs, targets, taught)
