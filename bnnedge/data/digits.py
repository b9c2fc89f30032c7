"""Handwritten digits: 1,797 real 8x8 grey images that come with scikit-learn, so nothing is downloaded.

Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (its test part).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn import datasets as sklearn_datasets

from bnnedge.data.augmentation import Shift
from bnnedge.data.images.splits import stratified_split
from bnnedge.data.samples import MemorySamples
from bnnedge.data.source import Source

SPLIT_SEED = 1797
"""Fixes which image is in which split, whatever the run's seed."""


def load_digits(data_root: Path | None = None) -> Source:
    """Digits at 16 pixels, split 70/10/20 into training, validation and test images of each class.

    Training images are shifted by up to an eighth of their width, over the black background. ``data_root`` is not
    used: the images are a part of scikit-learn.
    """
    bunch = sklearn_datasets.load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1)  # [1797, 1, 8, 8], values 0, 1 .. 16
    labels = torch.from_numpy(bunch.target).long()
    validation, test, train = stratified_split(labels.numpy(), (0.1, 0.2), SPLIT_SEED)
    pool = np.union1d(train, validation)
    every = MemorySamples(images, labels)
    return Source(
        name="digits",
        train=every.select(pool),
        test=every.select(test),
        size=(16, 16),
        channels=1,
        classes=tuple(str(d) for d in range(10)),
        validation=np.searchsorted(pool, validation),
        split_seed=SPLIT_SEED,
        scale=16.0,
        augmentation=Shift(),
    )
