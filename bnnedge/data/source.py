"""The contract of a data set's file: what is published, from which ``load_dataset`` makes what a run trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bnnedge.data.augmentation import Augmentation
from bnnedge.data.images.splits import Indices, hold_out
from bnnedge.data.samples import Samples


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
    """Channels of a picture."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of the labels; empty if there are none."""
    task: str = "classification"
    """What the targets are made for, a name in ``TASKS``."""
    validation: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    """Which of ``train`` are held out for validation unless the user says otherwise."""
    split_seed: int = 0
    """Fixes which samples are held out if the user names a share, whatever the run's seed."""
    scale: float = 255.0
    """The stored value that counts as 1."""
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Published mean and standard deviation of each channel; None: they are computed from the training pictures."""
    crop: float | None = None
    """See ``Preprocessing.crop``."""
    augmentation: Augmentation | None = None
    """How training pictures are changed, unless the user says otherwise."""


def own_validation(targets: Sequence[int] | Indices, share: float, seed: int) -> Indices:
    """The data set's own validation split: the rounded ``share`` of each class."""
    labels = np.asarray(targets, np.int64)
    return hold_out(labels, len(labels), share, seed)
