"""From a published data set to a ``Dataset`` that is ready for training: split, resized, with its record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bnnedge.data import AUGMENTATIONS, DATASETS
from bnnedge.data.augmentation import Augmentation
from bnnedge.data.batches import SPLITS, Dataset, Split
from bnnedge.data.images.splits import hold_out
from bnnedge.data.images.statistics import channel_statistics
from bnnedge.data.info import DatasetInfo, ValidationSplit
from bnnedge.data.preprocessing import Preprocessing, choose
from bnnedge.data.samples import MemorySamples, Samples
from bnnedge.data.source import Source
from bnnedge.errors import BnnedgeError, ConfigError, DataError
from bnnedge.tasks import TASKS

__all__ = ["SPLITS", "Dataset", "Split", "load_dataset", "load_dataset_as", "prepare"]


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
