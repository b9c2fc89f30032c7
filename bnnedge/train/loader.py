"""Batches on their way to the device: this process's samples alone, made ahead of the step that needs them on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from bnnedge.data.batches import Batch
from bnnedge.train.distributed import Group

T = TypeVar("T")
Parts = list[tuple[Tensor, Tensor]]
"""Inputs and targets of this process, one pair for each micro-batch."""


def load_parts(
    batches: Iterator[Batch], group: Group, accumulate: int, device: torch.device
) -> Iterator[tuple[Parts, int]]:
    """This process's parts of each batch, on ``device``, and the size of the whole batch."""
    own = ((_make(batch, group, accumulate), len(batch)) for batch in batches)
    if device.type != "cuda":
        yield from own
        return
    pinned = (([(x.pin_memory(), y.pin_memory()) for x, y in parts], size) for parts, size in own)
    for parts, size in one_ahead(pinned):
        yield to_device(parts, device), size


def _make(batch: Batch, group: Group, accumulate: int) -> Parts:
    return [batch.make(rows) for rows in group.share(torch.arange(len(batch)), accumulate)]


def to_device(parts: Parts, device: torch.device) -> Parts:
    """Move parts to the device. On a GPU images become NHWC in memory (channels_last), which its convolutions need."""
    if device.type != "cuda":
        return [(x.to(device), y.to(device)) for x, y in parts]
    moved = [(x.to(device, non_blocking=True), y.to(device, non_blocking=True)) for x, y in parts]
    return [(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x, y) for x, y in moved]


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made by a thread while its predecessor is used; an error surfaces at its item."""
    end = object()
    with ThreadPoolExecutor(1, "loader") as worker:
        coming = worker.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = worker.submit(next, items, end)
            yield item  # type: ignore[misc]
