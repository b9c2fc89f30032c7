"""MNIST: 60,000 training and 10,000 test grey images of 28x28 handwritten digits.

LeCun, Cortes and Burges 1998, "The MNIST database of handwritten digits"; http://yann.lecun.com/exdb/mnist/. Its IDX
files: two zero bytes, the element's type (8: bytes), the number of dimensions, each as four bytes (big-endian), then
the elements.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from bnnedge.data.files.folders import find_folder
from bnnedge.data.samples import MemorySamples
from bnnedge.data.source import Source, own_validation
from bnnedge.errors import DataError, one_line
from bnnedge.files import open_regular

SPLIT_SEED = 54_000
"""Fixes which training images are held out for validation, whatever the run's seed."""
_BYTES = 8
_MOST_BYTES = 2**27
"""Bytes of a file's images, of which the published ones have 47 million."""
_FOLDERS = ("mnist", "MNIST/raw")


def load_mnist(data_root: Path | None = None) -> Source:
    """MNIST from ``mnist`` or ``MNIST/raw`` in ``data_root``, its four files as published or unpacked, at 28 pixels.

    A tenth of each class of the published training set is held out for validation. Training images are not changed.
    Raises ``DataError`` naming the folder or file that is missing or damaged.
    """
    folder = find_folder("mnist", data_root, _FOLDERS)
    train, test = (_samples(folder, part) for part in ("train", "t10k"))
    return Source(
        name="mnist",
        train=train,
        test=test,
        size=(28, 28),
        channels=1,
        classes=tuple("0123456789"),
        validation=own_validation(train.targets.numpy(), 0.1, SPLIT_SEED),
        split_seed=SPLIT_SEED,
    )


def _samples(folder: Path, part: str) -> MemorySamples:
    images, image_path = _read_idx(folder, f"{part}-images-idx3-ubyte", dimensions=3)
    labels, label_path = _read_idx(folder, f"{part}-labels-idx1-ubyte", dimensions=1)
    if images.shape[1:] != (28, 28) or not len(images):
        raise DataError(f"{image_path}: expected images of 28 x 28 pixels, found {' x '.join(map(str, images.shape))}")
    if len(labels) != len(images) or labels.max() > 9:
        raise DataError(f"{label_path}: expected {len(images)} labels from 0 to 9; download it again")
    return MemorySamples(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long())


def _read_idx(folder: Path, name: str, dimensions: int) -> tuple[NDArray[np.uint8], Path]:
    plain, packed = folder / name, folder / f"{name}.gz"
    path = plain if plain.exists() else packed
    if not path.exists():
        raise DataError(f"mnist: expected the file {plain} or {packed.name} there")
    try:
        with open_regular(path, DataError) as stored, gzip.open(stored) if path == packed else stored as file:
            shape = _read_shape(file, dimensions, path)
            count = math.prod(shape)
            data = file.read(count + 1)  # and no more, however much a small file unpacks to
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}); download it again") from error
    if len(data) != count:
        found = "more" if len(data) > count else f"{len(data):,}"
        raise DataError(f"{path}: expected {count:,} bytes behind the header, found {found}; download it again")
    return np.frombuffer(data, np.uint8).reshape(shape).copy(), path


def _read_shape(file: BinaryIO | gzip.GzipFile, dimensions: int, path: Path) -> list[int]:
    """The sizes that the header gives, which hold at most _MOST_BYTES."""
    size = 4 + 4 * dimensions
    header = file.read(size)
    if len(header) < size or header[:4] != bytes([0, 0, _BYTES, dimensions]):
        raise DataError(f"{path} is no IDX file of bytes in {dimensions} dimensions, or cut off; download it again")
    shape: list[int] = np.frombuffer(header[4:], ">u4").tolist()
    if math.prod(shape) > _MOST_BYTES:
        sizes = " x ".join(map(str, shape))
        raise DataError(f"{path}: expected at most {_MOST_BYTES:,} bytes, found {sizes}; download it again")
    return shape
