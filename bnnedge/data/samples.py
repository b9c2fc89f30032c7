"""Images and their targets as a data set stores them: in memory, or each in a file of its own."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnnedge.data.augmentation import Augmentation
from bnnedge.data.images.decode import decoded
from bnnedge.data.images.resize import central_box, resize_image, resize_images
from bnnedge.data.images.white_level import WhiteLevel
from bnnedge.data.preprocessing import Preprocessing

_MOST_THREADS = 32


class Samples(ABC):
    """Inputs and targets in a fixed order. Stored pixels are uint8, or float32 from 0 to the data set's scale."""

    def __init__(self, targets: Tensor) -> None:
        """``targets`` [N, ...], for example int64 labels [N] or masks [N, H, W]."""
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def select(self, indices: NDArray[np.int64]) -> Samples:
        """The samples at ``indices``, in this order."""

    @abstractmethod
    def fit(self, record: Preprocessing) -> Samples:
        """The same samples in the geometry of ``record``: size, interpolation and crop."""

    @abstractmethod
    def read(
        self, indices: Tensor, augmentation: Augmentation | None = None, numbers: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Stored pixels [B, C, H, W] of the fitted geometry and targets [B, ...] at ``indices`` [B].

        With an augmentation they are changed by the random ``numbers`` [B, ``augmentation.numbers``].
        """


class MemorySamples(Samples):
    """Samples that are small enough to be kept in memory."""

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        """``images`` are stored pixels [N, C, H, W]."""
        super().__init__(targets)
        self.images = images

    def select(self, indices: NDArray[np.int64]) -> MemorySamples:
        return MemorySamples(self.images[indices], self.targets[indices])

    def fit(self, record: Preprocessing) -> MemorySamples:
        return MemorySamples(resize_images(self.images, record), fit_targets(self.targets, record))

    def read(
        self, indices: Tensor, augmentation: Augmentation | None = None, numbers: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        images, targets = self.images[indices], self.targets[indices]
        if augmentation is None or numbers is None:
            return images, targets
        return augmentation(images, targets, numbers)


class FileSamples(Samples):
    """Images that stay in their files until a batch needs them; as many threads as there are CPUs decode.

    They are read in grey or colour, as the record has it.
    """

    def __init__(
        self,
        paths: Sequence[str],
        targets: Tensor,
        record: Preprocessing | None = None,
        white: WhiteLevel | None = None,
    ) -> None:
        """``white`` is that of the training images; None if these are the training images."""
        super().__init__(targets)
        self.paths = paths
        self.white = white or WhiteLevel(paths)
        self._record = record

    def select(self, indices: NDArray[np.int64]) -> FileSamples:
        return FileSamples([self.paths[i] for i in indices.tolist()], self.targets[indices], self._record, self.white)

    def fit(self, record: Preprocessing) -> FileSamples:
        return FileSamples(self.paths, fit_targets(self.targets, record), record, self.white)

    def read(
        self, indices: Tensor, augmentation: Augmentation | None = None, numbers: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        assert self._record is not None, "fit() says which size the images are read in"
        paths = [self.paths[i] for i in indices.tolist()]
        rows: list[Any] = [None] * len(paths) if numbers is None else numbers.tolist()
        pixels = list(_threads().map(lambda path, row: self._decode(path, augmentation, row), paths, rows))
        shape = len(pixels), *self._record.size, self._record.channels
        stacked = np.stack(pixels).reshape(shape) if pixels else np.empty(shape, np.uint8)
        images, targets = torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous(), self.targets[indices]
        if augmentation is None or numbers is None:
            return images, targets
        return augmentation(images, targets, numbers)

    def _decode(
        self, path: str, augmentation: Augmentation | None, numbers: Sequence[float] | None
    ) -> NDArray[np.uint8]:
        record = self._record
        assert record is not None
        random = augmentation is not None and numbers is not None
        with decoded(path, record.channels, self.white) as image:
            box = augmentation.window(*image.size, record, numbers) if random else None  # type: ignore[union-attr, arg-type]
            return np.asarray(resize_image(image, record, box or central_box(*image.size, record)))


def fit_targets(targets: Tensor, record: Preprocessing) -> Tensor:
    """Targets that are maps [N, ..., H, W], in the size of ``record`` by the nearest pixel; others unchanged."""
    if targets.dim() < 3 or targets.shape[-2:] == record.size:
        return targets
    rows, columns = (
        (torch.arange(size) * stored // size) for size, stored in zip(record.size, targets.shape[-2:], strict=True)
    )
    return targets[..., rows[:, None], columns]


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS), "decode")
