"""The contract of a data set: three fixed splits in memory, normalised batches, and what a deployed file must know."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bnnedge.config import plain
from bnnedge.data import DATASETS
from bnnedge.errors import DataError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Augmentation = Callable[[Tensor, Tensor], Tensor]
"""Raw images [N, C, H, W] and random numbers [N, RANDOM_NUMBERS], uniform in [0, 1), to new raw images of the same
shape. An image depends on its own numbers alone, whatever the others of the batch."""
RANDOM_NUMBERS = 3
"""For each image."""


@dataclass(frozen=True)
class DatasetInfo:
    """What a model, a checkpoint and an exported file know of the data set; plain values only."""

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    in_channels: int
    image_size: int
    """Height and width in pixels."""
    mean: tuple[float, ...]
    """Per channel, of pixels in [0, 1]; the network's input is (pixel - mean) / std."""
    std: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON and ``weights_only`` checkpoints hold it."""
        return plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetInfo:
        """Inverse of ``to_dict``. Raises ``DataError`` naming the fields that are missing."""
        missing = [f.name for f in dataclasses.fields(cls) if f.name not in values]
        if missing:
            raise DataError(f"the description of the data set lacks {', '.join(missing)}")
        fields: dict[str, Any] = {}
        for f in dataclasses.fields(cls):
            value = values[f.name]
            fields[f.name] = tuple(value) if isinstance(value, list) else value
        return cls(**fields)


@dataclass(frozen=True)
class Batch:
    """Images of a batch that are chosen but not made yet, so that several processes can make their own ones alone."""

    dataset: Dataset
    split: Split
    indices: Tensor
    """Of the images in their split [B]."""
    numbers: Tensor | None
    """What their augmentation depends on [B, RANDOM_NUMBERS]; None: there is none."""

    def __len__(self) -> int:
        return len(self.indices)

    def make(self, rows: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Normalised images [N, C, H, W] float32 and labels [N] int64 of these of the batch."""
        numbers = None if self.numbers is None else self.numbers[rows]
        return self.dataset.samples(self.split, self.indices[rows], numbers)


class Dataset:
    """Three splits of square images. Raw images are kept as uint8 in [0, 255] or float32 in [0, 1]."""

    def __init__(
        self,
        name: str,
        class_names: tuple[str, ...],
        splits: Mapping[Split, tuple[Tensor, Tensor]],
        augmentation: Augmentation,
    ) -> None:
        """``splits`` holds raw images [N, C, H, H] and labels [N]; mean and std are taken from ``train``."""
        self._splits = {split: (images, labels.long()) for split, (images, labels) in splits.items()}
        self._augmentation = augmentation
        images = self._splits["train"][0]
        mean, std = channel_statistics(images)
        self.info = DatasetInfo(name, len(class_names), class_names, images.shape[1], images.shape[-1], mean, std)
        self._mean = torch.tensor(mean).view(1, -1, 1, 1)
        self._std = torch.tensor(std).view(1, -1, 1, 1)

    def size(self, split: Split) -> int:
        """Number of images."""
        return len(self._splits[split][1])

    def batches(
        self, split: Split, batch_size: int, generator: torch.Generator | None = None, augment: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images [B, C, H, W] float32 and labels [B] int64 of every one of ``plan``."""
        return (batch.make() for batch in self.plan(split, batch_size, generator, augment))

    def plan(
        self, split: Split, batch_size: int, generator: torch.Generator | None = None, augment: bool = False
    ) -> Iterator[Batch]:
        """The batches of an epoch.

        With a generator the order is random, and a last batch of a single image is left out, because batch
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
            shape = len(indices), RANDOM_NUMBERS
            numbers = torch.rand(shape, generator=generator, dtype=torch.float32) if augment else None
            yield Batch(self, split, indices, numbers)

    def samples(self, split: Split, indices: Tensor, numbers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalised images and labels at ``indices`` of the split, augmented by ``numbers`` if given."""
        images, labels = self._splits[split]
        chosen = images[indices]
        if numbers is not None:
            chosen = self._augmentation(chosen, numbers)
        return self._normalise(chosen), labels[indices]

    def steps(self, split: Split, batch_size: int) -> int:
        """Number of batches that ``batches`` yields with a generator."""
        full, rest = divmod(self.size(split), batch_size)
        return full + (1 if rest > 1 else 0)

    def arrays(self, split: Split) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The whole split: normalised images [N, C, H, W] and labels [N]."""
        images, labels = self._splits[split]
        return self._normalise(images).numpy(), labels.numpy()

    def _normalise(self, raw: Tensor) -> Tensor:
        return (_unit_range(raw) - self._mean) / self._std


def load_dataset(name: str, image_size: int | None = None, data_root: Path | None = None) -> Dataset:
    """A registered data set; ``image_size`` in pixels, None for the set's own.

    Raises ``UnknownNameError``, or ``DataError`` for files that are missing or damaged; never downloads.
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size must be at least 1 pixel, got {image_size}")
    dataset = DATASETS.load(name)(image_size, data_root)
    assert isinstance(dataset, Dataset)
    return dataset


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel of raw images [N, C, H, W], on the scale [0, 1].

    Sums run in float64 over chunks: 45,000 CIFAR images as float64 would be 1.1 GB.
    """
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in torch.split(images, 4096):
        pixels = _unit_range(chunk).double()
        total += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
    count = images.numel() // images.shape[1]
    mean = total / count
    variance = squares / count - mean.square()
    if bool((variance <= 0).any()):
        raise DataError("a colour channel of the training images is constant, so it cannot be normalised")
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())


def stratified_split(labels: NDArray[np.int64], val: float, test: float, seed: int) -> dict[Split, NDArray[np.int64]]:
    """Sorted indices of the splits; each class gives the rounded shares ``val`` and ``test``, the rest is ``train``.

    Drawn with NumPy's legacy generator, whose stream is frozen: the split is the same in every version.
    """
    random = np.random.RandomState(seed)
    parts: dict[Split, list[NDArray[np.int64]]] = {split: [] for split in SPLITS}
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        n_val, n_test = round(val * len(members)), round(test * len(members))
        parts["val"].append(members[:n_val])
        parts["test"].append(members[n_val : n_val + n_test])
        parts["train"].append(members[n_val + n_test :])
    return {split: np.sort(np.concatenate(p)) for split, p in parts.items()}


def resize_images(images: Tensor, size: int) -> Tensor:
    """Raw images [N, C, H, W] to ``size`` x ``size`` pixels: bilinear, pixel centres aligned, smoothed if smaller.

    uint8 images stay uint8, rounded to the nearest value.
    """
    if images.shape[-2:] == (size, size):
        return images
    shrinks = size < images.shape[-1]
    resized = [
        F.interpolate(chunk.float(), size=(size, size), mode="bilinear", align_corners=False, antialias=shrinks)
        for chunk in torch.split(images, 4096)
    ]
    return torch.cat([r.round().clamp(0, 255).to(images.dtype) for r in resized] if _is_byte(images) else resized)


def random_crop(images: Tensor, padding: int, numbers: Tensor) -> Tensor:
    """Pad [N, C, H, W] with ``padding`` zeros on each side and cut an H x W window out of each image.

    ``numbers`` [N, 2], from 0 to below 1, say where: a fraction of the 2 ``padding`` + 1 rows, and of the columns.
    """
    n, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    shift = (numbers * (2 * padding + 1)).long()
    rows = (shift[:, :1] + torch.arange(height))[:, :, None]  # [N, H, 1]
    columns = (shift[:, 1:] + torch.arange(width))[:, None, :]  # [N, 1, W]
    windows = padded.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows, columns]  # [N, H, W, C]
    return windows.permute(0, 3, 1, 2).contiguous()


def random_flip(images: Tensor, numbers: Tensor) -> Tensor:
    """Mirror those images of [N, C, H, W] left to right whose ``numbers`` [N], from 0 to below 1, are below 1/2."""
    return torch.where((numbers < 0.5).view(-1, 1, 1, 1), images.flip(-1), images)


def _is_byte(raw: Tensor) -> bool:
    return raw.dtype == torch.uint8


def _unit_range(raw: Tensor) -> Tensor:
    return raw.float() / 255 if _is_byte(raw) else raw
