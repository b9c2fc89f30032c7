"""ImageNet (ILSVRC 2012): 1.28 million training and 50,000 validation colour images in 1,000 classes.

Russakovsky et al. 2015, "ImageNet Large Scale Visual Recognition Challenge", arXiv:1409.0575.
"""

from __future__ import annotations

from pathlib import Path

from bnnedge.data.augmentation import WindowAndFlip
from bnnedge.data.files.class_folders import classes_of, labelled
from bnnedge.data.files.folders import find_folder
from bnnedge.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from bnnedge.data.source import Source, own_validation

_FOLDERS = ("imagenet/train", "ILSVRC2012/train", "train")
SPLIT_SEED = 1_231_000
"""Fixes which training images are held out for validation, whatever the run's seed."""
HELD_OUT = 0.04
CENTRE = 224 / 256
"""Share of the image's shorter side that evaluation reads."""


def load_imagenet(data_root: Path | None = None) -> Source:
    """ImageNet from ``imagenet/{train,val}/CLASS/*.JPEG`` in ``data_root``, at 224 pixels.

    4 % of the training images of each class are held out for validation; the published validation set is our test
    split, as that of ImageNet has no labels. Classes are the folders of ``train``, however many. Training reads random
    windows, mirrored at random. Raises ``DataError`` naming the folder that is missing.
    """
    folder = find_folder("imagenet", data_root, _FOLDERS).parent
    wnids = classes_of(folder, ("train", "val"))
    train = labelled([folder / "train" / wnid for wnid in wnids])
    return Source(
        name="imagenet",
        train=train,
        test=labelled([folder / "val" / wnid for wnid in wnids], train.white),
        size=(224, 224),
        channels=3,
        classes=tuple(wnids),
        validation=own_validation(train.targets.numpy(), HELD_OUT, SPLIT_SEED),
        split_seed=SPLIT_SEED,
        statistics=(IMAGENET_MEAN, IMAGENET_STD),
        crop=CENTRE,
        augmentation=WindowAndFlip(),
    )
