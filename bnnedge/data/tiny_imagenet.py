"""Tiny-ImageNet: 100,000 training and 10,000 validation colour images of 64x64 pixels in 200 classes.

Le and Yang 2015, "Tiny ImageNet Visual Recognition Challenge"; http://cs231n.stanford.edu/tiny-imagenet-200.zip.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from bnnedge.data.dataset import Dataset, DatasetInfo, Split, crop_and_flip, find_folder
from bnnedge.data.image_files import FileDataset, Files, class_folders, hold_out, labelled
from bnnedge.errors import DataError

FOLDER = "tiny-imagenet-200"
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)
SPLIT_SEED = 90_000
"""Fixes which training images are held out for validation, whatever the run's seed."""


class TinyImageNet(FileDataset):
    """Whole images, resized where 64 pixels are not wanted; in training padded by 4 pixels, cropped and mirrored."""

    def crop(self, image: Image.Image, numbers: Sequence[float] | None) -> Image.Image:
        size = self.info.image_size
        return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)

    def read(self, split: Split, indices: Tensor, numbers: Tensor | None) -> Tensor:
        whole = super().read(split, indices, None)
        return whole if numbers is None else crop_and_flip(whole, numbers)


def load_tiny_imagenet(image_size: int | None = None, data_root: Path | None = None) -> Dataset:
    """Tiny-ImageNet from ``tiny-imagenet-200`` in ``data_root``, as published or with ``val`` sorted into classes.

    90,000/10,000 stratified train/val split of the published training set; the published validation set is our test
    split, as that of the archive has no labels. Raises ``DataError`` naming the folder or file that is missing.
    """
    folder = find_folder("tiny_imagenet", data_root, (FOLDER,))
    wnids = class_folders(folder / "train")
    train = labelled([_images(folder / "train" / wnid) for wnid in wnids])
    splits = hold_out(train, 0.1, SPLIT_SEED, _published_val(folder / "val", wnids))
    info = DatasetInfo("tiny_imagenet", len(wnids), _names(folder, wnids), 3, image_size or 64, MEAN, STD)
    return TinyImageNet(info, splits)


def _images(folder: Path) -> Path:
    """Where the images of a class are."""
    return folder / "images" if (folder / "images").is_dir() else folder


def _published_val(folder: Path, wnids: Sequence[str]) -> Files:
    annotations = folder / "val_annotations.txt"
    if not annotations.exists():
        return labelled([_images(folder / wnid) for wnid in wnids])
    place = {wnid: label for label, wnid in enumerate(wnids)}
    paths, labels = [], []
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), start=1):
        file, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        if wnid not in place:
            raise DataError(f"{annotations}, line {number}: expected a file and a class of train, found {line[:80]!r}")
        paths.append(str(folder / "images" / file))
        labels.append(place[wnid])
    if not paths:
        raise DataError(f"{annotations} is empty; unpack the archive again")
    return paths, np.array(labels)


def _names(folder: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    """From words.txt, or the WordNet numbers where that is missing or has no name of their own for them."""
    try:
        lines = (folder / "words.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        return tuple(wnids)
    words = {wnid: text.split(",")[0].strip() for wnid, _, text in (line.partition("\t") for line in lines)}
    names = [words.get(wnid) or wnid for wnid in wnids]
    return tuple(name if names.count(name) == 1 else wnid for name, wnid in zip(names, wnids, strict=True))
