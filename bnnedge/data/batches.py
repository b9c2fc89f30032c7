"""A data set that is ready for training: fixed splits, normalised batches, and the record of how they were made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnnedge.data.augmentation import Augmentation
from bnnedge.data.info import DatasetInfo
from bnnedge.data.samples import Samples
from bnnedge.errors import DataError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Batch:
    """Samples of a batch that are chosen but not made yet, so that several processes can make their own ones alone."""

    dataset: Dataset
    split: Split
    indices: Tensor
    """Places [B] of the samples in their split."""
    numbers: Tensor | None
    """The random numbers [B, ``augmentation.numbers``] of their augmentation; None if there is none."""

    def __len__(self) -> int:
        return len(self.indices)

    def make(self, rows: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Inputs [N, C, H, W] float32 and targets [N, ...] of these samples of the batch."""
        numbers = None if self.numbers is None else self.numbers[rows]
        return self.dataset.samples(self.split, self.indices[rows], numbers)


class Dataset:
    """Two or three splits of samples. Without a validation split there is no ``val``."""

    def __init__(
        self, info: DatasetInfo, splits: Mapping[Split, Samples], augmentation: Augmentation | None = None
    ) -> None:
        """``splits`` are in the geometry of ``info.preprocessing``; ``augmentation`` changes training samples."""
        self.info = info
        self.task = info.make_task()
        self._splits = dict(splits)
        self._labels = {split: samples.targets for split, samples in splits.items()}
        self._augmentation = augmentation

    def has(self, split: Split) -> bool:
        """Whether there are samples in ``split``."""
        return split in self._splits

    def _samples(self, split: Split) -> Samples:
        if split not in self._splits:
            raise DataError(
                f"{self.info.name} has no {split} split here: no training sample was held out (--validation-split)"
            )
        return self._splits[split]

    def targets(self, split: Split) -> Tensor:
        """Targets [N, ...] of all samples."""
        self._samples(split)
        return self._labels[split]

    def size(self, split: Split) -> int:
        """Number of samples."""
        return len(self._samples(split))

    def batches(
        self, split: Split, batch_size: int, generator: torch.Generator | None = None, augment: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs [B, C, H, W] float32 and targets [B, ...] of every batch of ``plan``."""
        return (batch.make() for batch in self.plan(split, batch_size, generator, augment))

    def plan(
        self, split: Split, batch_size: int, generator: torch.Generator | None = None, augment: bool = False
    ) -> Iterator[Batch]:
        """The batches of an epoch.

        With a generator the order is random, and a last batch of a single sample is left out, because batch
        normalisation cannot train on it; order and augmentation are functions of the generator's state alone.
        Without one the order is that of the split, complete.
        """
        if augment and generator is None:
            raise ValueError("augmentation needs a generator")
        size = self.size(split)
        order = torch.arange(size) if generator is None else torch.randperm(size, generator=generator)
        for indices in torch.split(order, batch_size):
            if generator is not None and len(indices) == 1 < batch_size:
                return
            numbers = None
            if augment and self._augmentation is not None:
                shape = len(indices), self._augmentation.numbers
                numbers = torch.rand(shape, generator=generator, dtype=torch.float32)
            yield Batch(self, split, indices, numbers)

    def samples(self, split: Split, indices: Tensor, numbers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The task's inputs and targets at ``indices`` of the split, augmented by ``numbers`` if given."""
        pixels, targets = self._samples(split).read(indices, self._augmentation, numbers)
        return self.task.samples(self.info.preprocessing.normalize(pixels), targets)

    def steps(self, split: Split, batch_size: int) -> int:
        """Number of batches that ``plan`` yields with a generator."""
        full, rest = divmod(self.size(split), batch_size)
        return full + (1 if rest > 1 else 0)

    @property
    def most_at_once(self) -> int:
        """Samples that ``arrays`` should be asked for at most: 1 GiB of float32 pixels."""
        return max(1, 2**28 // int(np.prod(self.info.preprocessing.input_shape)))

    def arrays(self, split: Split, most: int | None = None) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """The whole split, or ``most`` of its samples evenly spaced: inputs [N, C, H, W] and targets [N, ...]."""
        inputs, targets = self.samples(split, self._evenly(split, most))
        return inputs.numpy(), targets.numpy()

    def read(self, split: Split, indices: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Stored pixels [B, C, H, W] at ``indices`` [B] of the split, augmented by ``numbers`` if given."""
        return self._samples(split).read(indices, self._augmentation, numbers)[0]

    def raw_arrays(self, split: Split, most: int | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Stored pixels and targets of the samples that ``arrays`` gives, for a reader that normalises by itself."""
        pixels, targets = self._samples(split).read(self._evenly(split, most))
        return pixels.numpy(), targets.numpy()

    def _evenly(self, split: Split, most: int | None) -> Tensor:
        size = self.size(split)
        count = size if most is None else min(most, size)
        return torch.arange(count) * size // max(count, 1)
