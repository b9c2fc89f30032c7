"""Data sets with one file for each image, in a folder for each class."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bnnedge.data.images.decode import WhiteLevel, suffixes
from bnnedge.data.samples import FileSamples
from bnnedge.errors import BnnedgeWarning, DataError, printable

_LEFTOVERS = frozenset({"__macosx", "@eadir", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini"})
"""What operating systems leave in folders, in lower case."""


def is_leftover(name: str) -> bool:
    """Whether a file or folder is hidden, or left there by an editor, a notebook or an operating system."""
    return name.startswith((".", "~$")) or name.endswith("~") or name.lower() in _LEFTOVERS


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in ``folder``, sorted: the classes. Raises ``DataError`` if there are none."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_leftover(entry.name))
    except OSError as error:
        raise DataError(f"expected the folder {folder} with a folder for each class: {error.strerror}") from error
    if not names:
        raise DataError(f"{folder}: expected a folder for each class with its images in it, found none")
    return names


def classes_of(folder: Path, splits: Sequence[str]) -> list[str]:
    """The classes of ``folder``/SPLIT. Raises ``DataError`` unless all ``splits`` have the same."""
    classes = class_folders(folder / splits[0])
    for split in splits[1:]:
        if odd := sorted(set(classes) ^ set(class_folders(folder / split))):
            raise DataError(
                f"{folder}: expected the same classes in {splits[0]} and {split}, found {printable(odd[0])!r} in one "
                "of them; add or remove its folder"
            )
    return classes


def labelled(folders: Sequence[Path], white: WhiteLevel | None = None) -> FileSamples:
    """The images of each folder, labelled by its place in ``folders``.

    ``white`` is that of the training images, for other splits. A warning counts the files that are left out because
    Pillow cannot decode them. Raises ``DataError`` for a folder without images.
    """
    left_out: Counter[str] = Counter()
    found = [_image_files(folder, left_out) for folder in folders]
    if left_out:
        kinds = ", ".join(f"{count} {printable(kind, 40)}" for kind, count in left_out.most_common(8))
        more = f" and {len(left_out) - 8} further kinds" if len(left_out) > 8 else ""
        warnings.warn(
            f"{folders[0].parent}: what Pillow does not decode as an image is left out: {kinds}{more}; convert or "
            "remove it",
            BnnedgeWarning,
            stacklevel=2,
        )
    labels = np.repeat(np.arange(len(found)), [len(paths) for paths in found])
    return FileSamples([path for paths in found for path in paths], torch.from_numpy(labels), white=white)


def _image_files(folder: Path, left_out: Counter[str]) -> list[str]:
    """Paths of the images in ``folder``, by name. Adds the kinds of other files to ``left_out``."""
    paths, others = [], Counter[str]()
    try:
        for entry in os.scandir(folder):
            if is_leftover(entry.name):
                continue
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir():
                others["folder"] += 1
            elif suffix not in suffixes():
                others[suffix or "without an ending"] += 1
            elif entry.is_file():
                paths.append(entry.path)
            else:
                raise DataError(f"{printable(entry.path)}: expected a file, found a pipe, a device or a broken link")
    except OSError as error:
        raise DataError(f"expected the folder {folder} of images: {error.strerror}") from error
    left_out.update(others)
    if not paths:
        kinds = ", ".join(printable(kind, 40) for kind in others)
        raise DataError(
            f"{folder}: expected images such as .jpg or .png, found {f'only {kinds}' if kinds else 'none'}; add some "
            "or remove the folder"
        )
    return sorted(paths)
