"""Numbers of one epoch: loss and top-1 over a split, and how the binary weights move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from bnnedge.data.dataset import Dataset, Split
from bnnedge.layers.binary_layers import binary_layers
from bnnedge.progress import shown
from bnnedge.train.distributed import ALONE, Group
from bnnedge.train.loader import one_ahead

EVALUATION_BATCH = 256
"""Images in one evaluation batch; fixed, so that a result does not depend on the run's batch size."""


@dataclass
class RunningMean:
    """Mean loss and top-1 over the images seen so far."""

    loss_sum: float = 0.0
    correct: int = 0
    images: int = 0

    def add(self, other: RunningMean) -> None:
        """Take in more images."""
        self.loss_sum += other.loss_sum
        self.correct += other.correct
        self.images += other.images

    @property
    def loss(self) -> float:
        return self.loss_sum / max(self.images, 1)

    @property
    def top1(self) -> float:
        """Share of images whose highest logit is the label's, from 0 to 1."""
        return self.correct / max(self.images, 1)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    split: Split,
    device: torch.device,
    predict: Callable[[nn.Module, Tensor], Tensor] = nn.Module.__call__,
    group: Group = ALONE,
    console: Console | None = None,
) -> RunningMean:
    """Cross-entropy and top-1 over a whole split, in float32; the model is left in eval mode.

    ``predict`` is a method's. The processes of ``group`` share the batches, and all get the same result. ``console``
    shows a bar if it is a terminal.
    """
    model.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss, hits, images
    own = islice(dataset.plan(split, EVALUATION_BATCH), group.rank, None, group.size)
    made: Iterator[tuple[Tensor, Tensor]] = (batch.make() for batch in own)
    made = one_ahead(made) if device.type == "cuda" else made
    batches = -(-dataset.size(split) // EVALUATION_BATCH // group.size)
    for images, labels in shown(made, "evaluating", batches, console):
        images, labels = images.to(device), labels.to(device)
        logits = predict(model, images)
        totals[0] += F.cross_entropy(logits, labels).double() * len(labels)
        totals[1] += (logits.argmax(1) == labels).sum()
        totals[2] += len(labels)
    group.sum_([totals])
    loss_sum, correct, images_seen = totals.tolist()
    return RunningMean(loss_sum, int(correct), int(images_seen))


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
    """Arithmetic mean; 0.0 of nothing."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0
