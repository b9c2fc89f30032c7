"""ImageNet (ILSVRC 2012): 1.28 million training and 50,000 validation colour images in 1,000 classes.

Russakovsky et al. 2015, "ImageNet Large Scale Visual Recognition Challenge", arXiv:1409.0575.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from bnnedge.data.dataset import Dataset, DatasetInfo, find_folder
from bnnedge.data.image_files import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FileDataset,
    class_folders,
    hold_out,
    labelled,
)
from bnnedge.errors import DataError

_FOLDERS = ("imagenet/train", "ILSVRC2012/train", "train")
SPLIT_SEED = 1_231_000
"""Fixes which training images are held out for validation, whatever the run's seed."""
HELD_OUT = 0.04
ATTEMPTS = 10
"""At a random window that fits into the image."""
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
"""Of the random window: share of the image's pixels; width by height."""
CENTRE = 224 / 256
"""Of the image's shorter side, for evaluation."""


class ImageNet(FileDataset):
    """A random window of the image, mirrored at random, in training (Szegedy et al. 2015, arXiv:1409.4842, section 6),
    and its central square otherwise; both resized, bilinear."""

    random_numbers = 2 * ATTEMPTS + 3

    def crop(self, image: Image.Image, numbers: Sequence[float] | None) -> Image.Image:
        size = self.info.image_size
        if numbers is None:
            return image.resize((size, size), Image.Resampling.BILINEAR, box=central_square(*image.size))
        window = image.resize((size, size), Image.Resampling.BILINEAR, box=random_window(*image.size, numbers))
        return window.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if numbers[-1] < 0.5 else window


Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge in pixels."""


def central_square(width: int, height: int) -> Box:
    """What a centre crop of 224 pixels leaves of an image whose shorter side was resized to 256 before."""
    side = CENTRE * min(width, height)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def random_window(width: int, height: int, numbers: Sequence[float]) -> Box:
    """The first window of random area and aspect that fits, at a random place; else the largest of an aspect allowed.

    ``numbers`` from 0 to below 1: area and aspect (on a logarithmic scale) of each attempt, and the place.
    """
    for attempt in range(ATTEMPTS):
        u, v = numbers[2 * attempt : 2 * attempt + 2]
        area = width * height * (AREA[0] + u * (AREA[1] - AREA[0]))
        aspect = ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** v
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = numbers[2 * ATTEMPTS : 2 * ATTEMPTS + 2]
            left, upper = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, upper, left + w, upper + h
    w = min(width, round(height * ASPECT[1]))
    h = min(height, round(width / ASPECT[0]))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def load_imagenet(image_size: int | None = None, data_root: Path | None = None) -> Dataset:
    """ImageNet from ``imagenet/{train,val}/CLASS/*.JPEG`` in ``data_root``, at ``image_size`` (224) pixels.

    4 % of the training images of each class are held out for validation; the published validation set is our test
    split, as that of ImageNet has no labels. Classes are the folders of ``train``, however many. Raises ``DataError``
    naming the folder that is missing.
    """
    folder = find_folder("imagenet", data_root, _FOLDERS).parent
    wnids = class_folders(folder / "train")
    if (test := class_folders(folder / "val")) != wnids:
        odd = sorted(set(wnids) ^ set(test))
        raise DataError(f"{folder}: expected the same classes in train and val, found {odd[0]} in one of them")
    train = labelled([folder / "train" / wnid for wnid in wnids])
    splits = hold_out(train, HELD_OUT, SPLIT_SEED, labelled([folder / "val" / wnid for wnid in wnids]))
    if not splits["val"][0]:
        raise DataError(f"{folder}: too few training images to hold {HELD_OUT:.0%} of each class out for validation")
    info = DatasetInfo("imagenet", len(wnids), tuple(wnids), 3, image_size or 224, IMAGENET_MEAN, IMAGENET_STD)
    return ImageNet(info, splits)
