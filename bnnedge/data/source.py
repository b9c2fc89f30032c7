"""The contract of a data set's file: what is published, from which ``load_dataset`` makes what a run trains on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bnnedge.data.augmentation import Augmentation
from bnnedge.data.images.splits import Indices, stratified_split
from bnnedge.data.samples import MemorySamples, Samples


@dataclass(frozen=True)
class Source:
    """A data set as it is published, before it is split, resized and normalised."""

    name: str
    """The name in ``DATASETS``."""
    train: Samples
    """All samples that may be trained on, those for validation included."""
    test: Samples
    """The samples that a finished network is tested on."""
    size: tuple[int, int]
    """Height and width in pixels, if the user names no others."""
    channels: int
    """Channels of an image."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of the labels; empty if there are none."""
    task: str = "classification"
    """What the targets are made for, a name in ``TASKS``."""
    validation: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    """Places in ``train`` of the samples that are held out for validation, unless the user chooses a share."""
    split_seed: int = 0
    """Fixes which samples are held out if the user names a share, whatever the run's seed."""
    scale: float = 255.0
    """The stored value that counts as 1."""
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Published mean and standard deviation of each channel; None: they are computed from the training images."""
    crop: float | None = None
    """See ``Preprocessing.crop``."""
    augmentation: Augmentation | None = None
    """The random changes of training images, unless the user chooses others."""


def own_validation(targets: Sequence[int] | Indices, share: float, seed: int) -> Indices:
    """The data set's own validation split: the rounded ``share`` of each class, and at least one sample of each class
    that has others."""
    labels = np.asarray(targets, np.int64)
    return stratified_split(labels, (share,), seed, at_least_one=True)[0]


def source_of_tensors(
    name: str,
    classes: tuple[str, ...],
    splits: Mapping[str, tuple[Tensor, Tensor]],
    *,
    scale: float = 255.0,
    augmentation: Augmentation | None = None,
    task: str = "classification",
) -> Source:
    """A source of stored pixels [N, C, H, W] and targets [N, ...], for ``train``, ``test`` and perhaps ``val``."""
    train, validation = splits["train"], splits.get("val")
    images, targets = train if validation is None else tuple(map(torch.cat, zip(train, validation, strict=True)))
    return Source(
        name=name,
        train=MemorySamples(images, targets),
        test=MemorySamples(*splits["test"]),
        size=(images.shape[-2], images.shape[-1]),
        channels=images.shape[1],
        classes=classes,
        task=task,
        validation=np.arange(len(train[1]), len(targets)),
        scale=scale,
        augmentation=augmentation,
    )
