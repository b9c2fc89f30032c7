"""The contract of a data set: three fixed splits, normalised batches, and what a deployed file must know."""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bnnedge.data import DATASETS
from bnnedge.errors import DataError
from bnnedge.options import plain

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Augmentation = Callable[[Tensor, Tensor], Tensor]
"""Raw images [N, C, H, W] and random numbers [N, ``Dataset.random_numbers``], uniform in [0, 1), to new raw images of
the same shape. An image depends on its own numbers alone, whatever the others of the batch."""


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
    """What their augmentation depends on [B, ``dataset.random_numbers``]; None: there is none."""

    def __len__(self) -> int:
        return len(self.indices)

    def make(self, rows: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Normalised images [N, C, H, W] float32 and labels [N] int64 of these of the batch."""
        numbers = None if self.numbers is None else self.numbers[rows]
        return self.dataset.samples(self.split, self.indices[rows], numbers)


class Dataset(ABC):
    """Three splits of square images, wherever these are. Raw images are uint8 in [0, 255] or float32 in [0, 1]."""

    random_numbers: int = 3
    """That the augmentation of an image takes."""

    def __init__(self, info: DatasetInfo, labels: Mapping[Split, Tensor]) -> None:
        """``labels`` [N] of each split."""
        self.info = info
        self._labels = {split: of_split.long() for split, of_split in labels.items()}
        self._mean = torch.tensor(info.mean).view(1, -1, 1, 1)
        self._std = torch.tensor(info.std).view(1, -1, 1, 1)

    @abstractmethod
    def read(self, split: Split, indices: Tensor, numbers: Tensor | None) -> Tensor:
        """Raw images at ``indices`` [B] of the split [B, C, H, H], augmented by ``numbers`` if given."""

    def size(self, split: Split) -> int:
        """Number of images."""
        return len(self._labels[split])

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
            shape = len(indices), self.random_numbers
            numbers = torch.rand(shape, generator=generator, dtype=torch.float32) if augment else None
            yield Batch(self, split, indices, numbers)

    def samples(self, split: Split, indices: Tensor, numbers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalised images and labels at ``indices`` of the split, augmented by ``numbers`` if given."""
        raw = self.read(split, indices, numbers)
        return (_unit_range(raw) - self._mean) / self._std, self._labels[split][indices]

    def steps(self, split: Split, batch_size: int) -> int:
        """Number of batches that ``batches`` yields with a generator."""
        full, rest = divmod(self.size(split), batch_size)
        return full + (1 if rest > 1 else 0)

    @property
    def most_at_once(self) -> int:
        """Images that ``arrays`` should be asked for at most: 1 GiB of float32 pixels."""
        return max(1, 2**28 // (self.info.in_channels * self.info.image_size**2))

    def arrays(self, split: Split, most: int | None = None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The whole split, or ``most`` of its images evenly spaced: normalised [N, C, H, W], and labels [N]."""
        size = self.size(split)
        count = size if most is None else min(most, size)
        images, labels = self.samples(split, torch.arange(count) * size // max(count, 1))
        return images.numpy(), labels.numpy()


class MemoryDataset(Dataset):
    """A data set that is small enough to be kept in memory."""

    def __init__(
        self,
        name: str,
        class_names: tuple[str, ...],
        splits: Mapping[Split, tuple[Tensor, Tensor]],
        augmentation: Augmentation,
    ) -> None:
        """``splits`` holds raw images [N, C, H, H] and labels [N]; mean and std are taken from ``train``."""
        self._images = {split: images for split, (images, _) in splits.items()}
        self._augmentation = augmentation
        images = self._images["train"]
        statistics = channel_statistics(images)
        info = DatasetInfo(name, len(class_names), class_names, images.shape[1], images.shape[-1], *statistics)
        super().__init__(info, {split: labels for split, (_, labels) in splits.items()})

    def read(self, split: Split, indices: Tensor, numbers: Tensor | None) -> Tensor:
        chosen = self._images[split][indices]
        return chosen if numbers is None else self._augmentation(chosen, numbers)


DATA_ROOT_VARIABLE = "BNNEDGE_DATA"


def find_folder(name: str, data_root: Path | None, choices: Sequence[str]) -> Path:
    """The first of ``choices``, which are relative paths, that is a folder in ``data_root`` or ``$BNNEDGE_DATA``.

    Raises ``DataError`` that names them for the data set ``name``.
    """
    root = data_root or (Path(os.environ[DATA_ROOT_VARIABLE]) if os.environ.get(DATA_ROOT_VARIABLE) else None)
    expected = " or ".join(choices)
    if root is None:
        raise DataError(
            f"{name} needs its folder: give --data-root (or {DATA_ROOT_VARIABLE}), the folder that holds {expected}"
        )
    for choice in choices:
        if (root / choice).is_dir():
            return root / choice
    raise DataError(f"{name}: expected the folder {root / expected}{' there' if len(choices) > 1 else ''}")


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


def crop_and_flip(images: Tensor, numbers: Tensor) -> Tensor:
    """``random_crop`` from 4 pixels of padding and ``random_flip``, by ``numbers`` [N, 3] (He et al. 2016, 4.2)."""
    return random_flip(random_crop(images, 4, numbers[:, :2]), numbers[:, 2])


def _is_byte(raw: Tensor) -> bool:
    return raw.dtype == torch.uint8


def _unit_range(raw: Tensor) -> Tensor:
    return raw.float() / 255 if _is_byte(raw) else raw
