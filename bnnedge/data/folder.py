"""One's own images: a folder for each split, in it a folder for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bnnedge.data.augmentation import Shift
from bnnedge.data.files.class_folders import classes_of, labelled
from bnnedge.data.files.folders import data_folder
from bnnedge.data.images.decode import is_grey
from bnnedge.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from bnnedge.data.samples import FileSamples
from bnnedge.data.source import Source, own_validation
from bnnedge.errors import DataError

SPLIT_SEED = 9
"""Fixes which training images are held out for validation, whatever the run's seed."""
GREY_MEAN, GREY_STD = (0.449,), (0.226,)
"""Mean and standard deviation of ImageNet's images in grey: the means of those of its three channels."""


def load_folder(data_root: Path | None = None) -> Source:
    """The images ``train/CLASS/*`` and ``test/CLASS/*`` in ``data_root``, at 224 pixels; perhaps ``val/CLASS/*``.

    Without ``test``, ``val`` is what a finished network is tested on. Unless both are there, a tenth of the training
    images of each class, and at least one, is held out for validation. The central square of an image is read. If all
    training images are grey, so is the network's input. Training images are shifted by up to an eighth of their width.
    Raises ``DataError`` naming the folder that is missing.
    """
    root = data_folder("folder", data_root, "train and val (or test), each with a folder of images for each class")
    splits = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    if "train" not in splits or len(splits) == 1:
        missing = "val or test" if "train" in splits else "train"
        raise DataError(
            f"{root}: expected the folders train and val (or test), each with a folder of images for each class, found "
            f"no {missing}; split the images so"
        )
    classes = classes_of(root, splits)
    if len(classes) == 1:
        raise DataError(f"{root}: expected at least two classes in train, found only {classes[0]!r}; add another")
    train = labelled([root / "train" / name for name in classes])
    held_out, *further = (labelled([root / split / name for name in classes], train.white) for split in splits[1:])
    validation = own_validation(train.targets.numpy(), 0.1, SPLIT_SEED)
    if further:
        validation = np.arange(len(train), len(train) + len(held_out))
        targets = torch.cat((train.targets, held_out.targets))
        train = FileSamples([*train.paths, *held_out.paths], targets, white=train.white)
    grey = all(map(is_grey, train.paths))
    return Source(
        name="folder",
        train=train,
        test=further[0] if further else held_out,
        size=(224, 224),
        channels=1 if grey else 3,
        classes=tuple(classes),
        validation=validation,
        split_seed=SPLIT_SEED,
        statistics=(GREY_MEAN, GREY_STD) if grey else (IMAGENET_MEAN, IMAGENET_STD),
        crop=1.0,
        augmentation=Shift(),
    )
