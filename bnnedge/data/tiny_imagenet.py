"""Tiny-ImageNet: 100,000 training and 10,000 validation colour images of 64x64 pixels in 200 classes.

Le and Yang 2015, "Tiny ImageNet Visual Recognition Challenge"; http://cs231n.stanford.edu/tiny-imagenet-200.zip.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from bnnedge.data.augmentation import CropAndFlip
from bnnedge.data.files.class_folders import class_folders, is_image, labelled
from bnnedge.data.files.folders import find_folder
from bnnedge.data.images.white_level import WhiteLevel
from bnnedge.data.samples import FileSamples
from bnnedge.data.source import Source, own_validation
from bnnedge.errors import BnnedgeWarning, DataError, printable
from bnnedge.files import read_within

FOLDER = "tiny-imagenet-200"
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)
_MOST_BYTES = 2**26
"""Bytes of a table, of which the largest published one, words.txt, has 2.7 million."""
SPLIT_SEED = 90_000
"""Fixes which training images are held out for validation, whatever the run's seed."""


def load_tiny_imagenet(data_root: Path | None = None) -> Source:
    """Tiny-ImageNet from ``tiny-imagenet-200`` in ``data_root``, as published or with ``val`` sorted into classes.

    A tenth of each class of the published training set is held out for validation; the published validation set is our
    test split, as that of the archive has no labels. Training images are padded by 4 pixels, cropped and mirrored at
    random. Raises ``DataError`` naming the folder or file that is missing.
    """
    folder = find_folder("tiny_imagenet", data_root, (FOLDER,))
    wnids = class_folders(folder / "train")
    names = _names(folder, wnids)
    train = labelled([_images(folder / "train" / wnid) for wnid in wnids])
    return Source(
        name="tiny_imagenet",
        train=train,
        test=_published_val(folder / "val", wnids, train.white),
        size=(64, 64),
        channels=3,
        classes=names,
        validation=own_validation(train.targets.numpy(), 0.1, SPLIT_SEED),
        split_seed=SPLIT_SEED,
        statistics=(MEAN, STD),
        augmentation=CropAndFlip(),
    )


def _images(folder: Path) -> Path:
    """The folder that holds the images of a class."""
    return folder / "images" if (folder / "images").is_dir() else folder


def _published_val(folder: Path, wnids: Sequence[str], white: WhiteLevel) -> FileSamples:
    annotations = folder / "val_annotations.txt"
    if not annotations.exists():
        return _sorted_val(folder, wnids, white)
    images = set(os.listdir(folder / "images")) if (folder / "images").is_dir() else set()
    place = {wnid: label for label, wnid in enumerate(wnids)}
    labels: dict[str, int] = {}
    for number, line in enumerate(_lines(annotations), start=1):
        file, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        if wnid not in place or file not in images or file in labels:
            raise DataError(
                f"{annotations}, line {number}: expected a file of the folder images that no line before names, and a "
                f"class of train, found '{printable(line, 80)}'; unpack the archive again"
            )
        labels[file] = place[wnid]
    if not labels:
        raise DataError(f"{annotations} is empty; unpack the archive again")
    if missing := sum(is_image(file) for file in images - labels.keys()):
        warnings.warn(
            f"{annotations} names no class for {missing} of the images of {folder / 'images'}, which are left out; "
            "unpack the archive again",
            BnnedgeWarning,
            stacklevel=2,
        )
    paths = [str(folder / "images" / file) for file in labels]
    return FileSamples(paths, torch.tensor(list(labels.values())), white=white)


def _sorted_val(folder: Path, wnids: Sequence[str], white: WhiteLevel) -> FileSamples:
    """The validation images where they have been sorted into a folder for each class, perhaps beside an empty one."""
    found = set(class_folders(folder)) - {"images"}
    if odd := sorted(found ^ set(wnids)):
        raise DataError(
            f"{folder.parent}: expected the same classes in train and val, found '{printable(odd[0])}' in one of them; "
            "add or remove its folder"
        )
    return labelled([_images(folder / wnid) for wnid in wnids], white)


def _lines(path: Path) -> list[str]:
    try:
        return read_within(path, _MOST_BYTES, DataError).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected text in UTF-8 ({error.reason}); unpack the archive again") from error


def _names(folder: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    """Names from words.txt, or WordNet numbers where that file is missing or gives several classes one name."""
    path = folder / "words.txt"
    if not path.exists():
        return tuple(wnids)
    words = {wnid: text.split(",")[0].strip() for wnid, _, text in (line.partition("\t") for line in _lines(path))}
    names = [words.get(wnid) or wnid for wnid in wnids]
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else wnid for name, wnid in zip(names, wnids, strict=True))
