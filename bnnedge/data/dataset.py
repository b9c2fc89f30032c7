"""A data set that is ready for training: fixed splits, normalised batches, and the record of how they were made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnnedge.data import AUGMENTATIONS, DATASETS
from bnnedge.data.augmentation import Augmentation
from bnnedge.data.images.splits import hold_out
from bnnedge.data.images.statistics import channel_statistics
from bnnedge.data.info import DatasetInfo, ValidationSplit
from bnnedge.data.preprocessing import Preprocessing, choose
from bnnedge.data.samples import MemorySamples, Samples
from bnnedge.data.source import Source
from bnnedge.errors import BnnedgeError, ConfigError, DataError
from bnnedge.tasks import TASKS

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

    def raw_arrays(self, split: Split, most: int | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
        """As ``arrays``, with stored pixels, for a reader that normalises them by itself, and stored targets."""
        pixels, targets = self._samples(split).read(self._evenly(split, most))
        return pixels.numpy(), targets.numpy()

    def _evenly(self, split: Split, most: int | None) -> Tensor:
        size = self.size(split)
        count = size if most is None else min(most, size)
        return torch.arange(count) * size // max(count, 1)


def load_dataset(
    name: str,
    image_size: int | tuple[int, int] | None = None,
    data_root: Path | None = None,
    *,
    preprocess: str | None = None,
    augment: str = "own",
    validation_split: ValidationSplit = "own",
    task: str | None = None,
) -> Dataset:
    """A registered data set as a run's settings choose it; see ``prepare``.

    ``data_root`` is the folder of data sets that are read from files, None: ``$BNNEDGE_DATA``. Raises
    ``UnknownNameError``, ``ConfigError`` for settings that do not fit, or ``DataError`` for files that are missing or
    damaged; never downloads.
    """
    return prepare(
        _read(name, data_root),
        image_size,
        preprocess=preprocess,
        augment=augment,
        validation_split=validation_split,
        task=task,
    )


def prepare(
    source: Source,
    image_size: int | tuple[int, int] | None = None,
    *,
    preprocess: str | None = None,
    augment: str = "own",
    validation_split: ValidationSplit = "own",
    task: str | None = None,
) -> Dataset:
    """``source`` split, resized and with the preprocessing record to train with.

    Args:
        image_size: pixels of square images, or height and width; None: the data set's own.
        preprocess: a name in ``PREPROCESSINGS``; None: the data set's own record.
        augment: a name in ``AUGMENTATIONS``, ``own`` or ``none``.
        validation_split: which training samples are held out: ``own``, ``none``, or a share above 0 and below 1.
        task: a name in ``TASKS``; None: what the data set is made for.

    Raises ``UnknownNameError`` or ``ConfigError`` for settings that do not fit.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size or source.size
    if min(size) < 1:
        raise DataError(f"image_size must be at least 1 pixel, got {image_size}")
    chosen_task = source.task if task is None else task
    outputs = TASKS.load(chosen_task).outputs_for(len(source.classes), source.channels)
    splits = _split(source, validation_split)
    record, fitted = _choose_record(source, splits, size, preprocess)
    info = DatasetInfo(source.name, chosen_task, outputs, source.classes, record, validation_split)
    return Dataset(info, fitted, _augmentation(source, augment))


def load_dataset_as(info: DatasetInfo, data_root: Path | None = None, augment: str = "own") -> Dataset:
    """The data set that ``info`` names, made exactly as a checkpoint or an exported file describes it.

    Raises as ``load_dataset`` does, and ``DataError`` if the data set has other classes or channels now.
    """
    source = _read(info.name, data_root)
    if source.classes != info.classes or source.channels != info.preprocessing.channels:
        raise DataError(
            f"{info.name} does not fit: the network was trained for {len(info.classes)} classes and "
            f"{info.preprocessing.channels} channels ({_some(info.classes)}), the data set has {len(source.classes)} "
            f"and {source.channels} ({_some(source.classes)})"
        )
    splits = _split(source, info.validation_split)
    fitted = {split: samples.fit(info.preprocessing) for split, samples in splits.items()}
    return Dataset(info, fitted, _augmentation(source, augment))


def _some(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:3]) + (", .." if len(classes) > 3 else "") or "none"


def _read(name: str, data_root: Path | None) -> Source:
    source = DATASETS.load(name)(data_root)
    assert isinstance(source, Source)
    return source


def _augmentation(source: Source, name: str) -> Augmentation | None:
    if name == "own":
        return source.augmentation
    if name == "none":
        return None
    augmentation = AUGMENTATIONS.load(name)()
    assert isinstance(augmentation, Augmentation)
    return augmentation


def _split(source: Source, validation_split: ValidationSplit) -> dict[Split, Samples]:
    """The splits that have samples."""
    count = len(source.train)
    if validation_split == "own":
        held_out = source.validation
        if not len(held_out):
            raise DataError(
                f"{source.name} has too few training samples to hold any out for validation; "
                "--validation-split none trains on all of them"
            )
    elif validation_split == "none":
        held_out = np.empty(0, np.int64)
    else:
        if not isinstance(validation_split, float) or not 0 < validation_split < 1:
            raise ConfigError(f"validation_split must be own, none or above 0 and below 1, got {validation_split!r}")
        labels = source.train.targets.numpy() if source.classes and source.train.targets.dim() == 1 else None
        held_out = hold_out(labels, count, validation_split, source.split_seed)
        if not 0 < len(held_out) < count:
            raise ConfigError(
                f"validation_split {validation_split} of the {count} training samples of {source.name} leaves "
                f"{len(held_out)} for validation; choose another share"
            )
    splits: dict[Split, Samples] = {"train": source.train, "test": source.test}
    if len(held_out):
        rest = np.setdiff1d(np.arange(count), held_out)
        splits |= {"train": source.train.select(rest), "val": source.train.select(held_out)}
    return splits


def _choose_record(
    source: Source, splits: Mapping[Split, Samples], size: tuple[int, int], preprocess: str | None
) -> tuple[Preprocessing, dict[Split, Samples]]:
    """The record to train with, and the splits in its geometry."""
    zeros, ones = (0.0,) * source.channels, (1.0,) * source.channels
    own = Preprocessing(source.channels, *size, source.scale, zeros, ones, crop=source.crop)
    fitted = {split: samples.fit(own) for split, samples in splits.items()}
    mean, std = source.statistics or _statistics(source, fitted["train"])
    own = dataclasses.replace(own, mean=mean, std=std)
    try:
        record = choose(preprocess or "own", own)
    except ConfigError as error:
        raise ConfigError(f"{source.name}: {error}") from error
    if record.geometry != own.geometry:
        fitted = {split: samples.fit(record) for split, samples in splits.items()}
    return record, fitted


def _statistics(source: Source, train: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not isinstance(train, MemorySamples):
        raise BnnedgeError(f"data set {source.name} reads its images from files, so it must say their statistics")
    return channel_statistics(train.images, source.scale)
