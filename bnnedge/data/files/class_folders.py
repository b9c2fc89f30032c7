"""Data sets with one file for each image, in a folder for each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bnnedge.data.samples import FileSamples
from bnnedge.errors import DataError

ENDINGS = (".jpeg", ".jpg", ".png")


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in ``folder``, sorted: the classes. Raises ``DataError`` if there are none."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        raise DataError(f"expected the folder {folder} with a folder for each class: {error.strerror}") from error
    if not names:
        raise DataError(f"{folder}: expected a folder for each class with its images in it, found none")
    return names


def image_files(folder: Path) -> list[str]:
    """Paths of the image files in ``folder``, by name. Raises ``DataError`` if there are none."""
    try:
        paths = sorted(entry.path for entry in os.scandir(folder) if entry.name.lower().endswith(ENDINGS))
    except OSError as error:
        raise DataError(f"expected the folder {folder} of images: {error.strerror}") from error
    if not paths:
        raise DataError(f"{folder}: expected images ({', '.join(ENDINGS)}), found none")
    return paths


def labelled(folders: Sequence[Path]) -> FileSamples:
    """The images of each folder, labelled by its place in ``folders``."""
    found = [image_files(folder) for folder in folders]
    labels = np.repeat(np.arange(len(found)), [len(paths) for paths in found])
    return FileSamples([path for paths in found for path in paths], torch.from_numpy(labels))
