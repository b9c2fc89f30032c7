"""Handwritten digits: 1,797 real 8x8 grey images that come with scikit-learn, so nothing is downloaded.

Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (its test part).
"""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn import datasets as sklearn_datasets
from torch import Tensor

from bnnedge.data.dataset import Dataset, MemoryDataset, random_crop, resize_images, stratified_split

SPLIT_SEED = 1797
"""Fixes which image is in which split, whatever the run's seed."""


def load_digits(image_size: int | None = None, data_root: Path | None = None) -> Dataset:
    """70/10/20 stratified train/val/test split, resized to ``image_size`` (16) pixels.

    Training images are shifted by up to ``image_size // 8`` pixels, over the black background. ``data_root`` is not
    used: the images are a part of scikit-learn.
    """
    bunch = sklearn_datasets.load_digits()
    size = 16 if image_size is None else image_size
    grey = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16  # [1797, 1, 8, 8], values 0, 1/16 ... 1
    images = resize_images(grey, size)
    labels = torch.from_numpy(bunch.target).long()
    splits = stratified_split(labels.numpy(), val=0.1, test=0.2, seed=SPLIT_SEED)

    def shift(batch: Tensor, numbers: Tensor) -> Tensor:
        return random_crop(batch, size // 8, numbers[:, :2])

    return MemoryDataset(
        "digits", tuple(str(d) for d in range(10)), {s: (images[i], labels[i]) for s, i in splits.items()}, shift
    )
