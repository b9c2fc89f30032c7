"""Data sets whose images stay in their files, one each, until a batch needs them."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bnnedge.data.dataset import Dataset, DatasetInfo, Split, stratified_split
from bnnedge.errors import DataError

ENDINGS = (".jpeg", ".jpg", ".png")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MOST_THREADS = 32

Files = tuple[Sequence[str], NDArray[np.int64]]
"""Of a split: image files [N] and labels [N]."""


class FileDataset(Dataset):
    """Colour images, decoded when they are read, by as many threads as there are CPUs."""

    def __init__(self, info: DatasetInfo, splits: Mapping[Split, Files]) -> None:
        super().__init__(info, {split: torch.from_numpy(labels) for split, (_, labels) in splits.items()})
        self._paths = {split: paths for split, (paths, _) in splits.items()}

    @abstractmethod
    def crop(self, image: Image.Image, numbers: Sequence[float] | None) -> Image.Image:
        """``info.image_size`` pixels square of ``image``, in training as its random numbers say."""

    def read(self, split: Split, indices: Tensor, numbers: Tensor | None) -> Tensor:
        paths = [self._paths[split][i] for i in indices.tolist()]
        rows = [None] * len(paths) if numbers is None else numbers.tolist()
        pixels = list(self._threads.map(self._decode, paths, rows))
        size = self.info.image_size
        stacked = np.stack(pixels) if pixels else np.empty((0, size, size, 3), np.uint8)
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()

    def _decode(self, path: str, numbers: Sequence[float] | None) -> NDArray[np.uint8]:
        try:
            with Image.open(path) as image:
                return np.asarray(self.crop(image.convert("RGB"), numbers))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as Pillow reports damage
            raise DataError(f"{path} is damaged or no image ({error}); unpack the archive again") from error

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS), "decode")


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


def labelled(folders: Sequence[Path]) -> Files:
    """The images of each folder, labelled by its place in ``folders``."""
    found = [image_files(folder) for folder in folders]
    labels = np.repeat(np.arange(len(found)), [len(paths) for paths in found])
    return [path for paths in found for path in paths], labels


def hold_out(train: Files, share: float, seed: int, test: Files) -> dict[Split, Files]:
    """Splits in which ``share`` of each class of ``train`` is what we validate on, as ``stratified_split`` draws it."""
    paths, labels = train
    held_out = stratified_split(labels, val=share, test=0.0, seed=seed)
    splits: dict[Split, Files] = {"test": test}
    for split in ("train", "val"):
        indices = held_out[split]
        splits[split] = [paths[i] for i in indices], labels[indices]
    return splits
