"""Numbers of one epoch: loss and scores over a split, and how the binary weights move."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from rich.console import Console
from torch import Tensor, nn

from bnnedge.data.dataset import Dataset, Split
from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import binary_layers
from bnnedge.memory import check_memory
from bnnedge.progress import shown
from bnnedge.tasks.task import Tally
from bnnedge.train.distributed import ALONE, Group
from bnnedge.train.loader import one_ahead

EVALUATION_BATCH = 256
"""Samples in one evaluation batch; fixed, so that a result does not depend on the run's batch size."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    split: Split,
    device: torch.device,
    predict: Callable[[nn.Module, Tensor], Tensor] = nn.Module.__call__,
    group: Group = ALONE,
    console: Console | None = None,
) -> Tally:
    """The task's loss and scores over a whole split, in float32; the model is left in eval mode.

    ``predict`` is a method's. The processes of ``group`` share the batches, and all get the same result. ``console``
    shows a bar if it is a terminal.
    """
    model.eval()
    task = dataset.task
    shape = (min(EVALUATION_BATCH, dataset.size(split)), *dataset.info.preprocessing.input_shape)
    check_memory(4 * math.prod(shape), f"evaluating {shape[0]} images of {shape[2]}x{shape[3]} pixels", ConfigError)
    totals = torch.zeros(2 + task.number_of_sums, dtype=torch.float64, device=device)  # loss, samples, the task's sums
    own = islice(dataset.plan(split, EVALUATION_BATCH), group.rank, None, group.size)
    made: Iterator[tuple[Tensor, Tensor]] = (batch.make() for batch in own)
    made = one_ahead(made) if device.type == "cuda" else made
    batches = -(-dataset.size(split) // EVALUATION_BATCH // group.size)
    for inputs, targets in shown(made, "evaluating", batches, console):
        inputs, targets = inputs.to(device), targets.to(device)
        outputs = predict(model, inputs)
        totals[0] += task.loss(outputs, targets).double() * len(targets)
        totals[1] += len(targets)
        totals[2:] += task.sums(outputs, targets)
    group.sum_([totals])
    loss_sum, samples, *sums = totals.tolist()
    tally = Tally(task)
    tally.add_sums(int(samples), sums, loss_sum)
    return tally


@torch.no_grad()
def binary_weights(model: nn.Module) -> dict[str, Tensor]:
    """Where each binary layer's weight is +1, as bool tensors by module path; ``model`` is in eval mode."""
    return {name: layer.binarizer.binarize_weight(layer.weight) > 0 for name, layer in binary_layers(model).items()}


def flip_rates(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Share of each layer's binary weights whose sign differs between two ``binary_weights``, from 0 to 1."""
    return {name: float((before[name] != after[name]).double().mean()) for name in after}


def positive_fractions(weights: dict[str, Tensor]) -> dict[str, float]:
    """Share of +1 among each layer's binary weights, from 0 to 1."""
    return {name: float(weight.double().mean()) for name, weight in weights.items()}


def mean_of(values: Iterable[float]) -> float:
    """The arithmetic mean; 0.0 if there are no values."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0
