"""Readers of the two published forms of CIFAR: the binary version and the Python version.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"; https://www.cs.toronto.edu/~kriz/cifar.html.
Both hold images as 3,072 bytes: 1,024 red, 1,024 green, 1,024 blue, each row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bnnedge.data.augmentation import CropAndFlip
from bnnedge.data.files.folders import find_folder
from bnnedge.data.files.pickled_arrays import read_pickled
from bnnedge.data.samples import MemorySamples
from bnnedge.data.source import Source, own_validation
from bnnedge.errors import DataError, one_line, printable
from bnnedge.files import read_within

IMAGE_BYTES = 3 * 32 * 32
MOST_BYTES = 2**28
"""Bytes of all training files together, which have 154 million as they are published."""
MOST_NAMES_BYTES = 2**16
"""Bytes of the file of class names."""
SPLIT_SEED = 45_000
"""Fixes which training images are held out for validation, whatever the run's seed."""

Samples = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images [N, 3, 32, 32] and labels [N]."""


@dataclass(frozen=True)
class CifarLayout:
    """File and field names of one of the two data sets."""

    name: str
    num_classes: int
    binary_folder: str
    binary_train: tuple[str, ...]
    binary_test: str
    binary_names: str
    label_bytes: int
    """Bytes before each image; the last one is the label."""
    python_folder: str
    python_train: tuple[str, ...]
    python_test: str
    python_meta: str
    label_key: bytes
    names_key: bytes


def load_cifar(layout: CifarLayout, data_root: Path | None) -> Source:
    """The binary version if it is there, else the Python version, under ``data_root`` or ``$BNNEDGE_DATA``.

    A tenth of each class of the published training set is held out for validation. Training images are padded by 4
    pixels, cropped and mirrored at random. Raises ``DataError`` naming the folder or file that is missing or damaged.
    """
    train, test, names = _read(layout, data_root)
    return Source(
        name=layout.name,
        train=MemorySamples(*map(torch.from_numpy, train)),
        test=MemorySamples(*map(torch.from_numpy, test)),
        size=(32, 32),
        channels=3,
        classes=names,
        validation=own_validation(train[1], 0.1, SPLIT_SEED),
        split_seed=SPLIT_SEED,
        augmentation=CropAndFlip(),
    )


def _read(layout: CifarLayout, data_root: Path | None) -> tuple[Samples, Samples, tuple[str, ...]]:
    folder = find_folder(layout.name, data_root, (layout.binary_folder, layout.python_folder))
    return (_read_binary if folder.name == layout.binary_folder else _read_python)(layout, folder)


def _read_binary(layout: CifarLayout, folder: Path) -> tuple[Samples, Samples, tuple[str, ...]]:
    train = _join([_binary_samples(layout, folder / name) for name in layout.binary_train])
    test = _binary_samples(layout, folder / layout.binary_test)
    path = folder / layout.binary_names
    lines = _read_bytes(layout, path, MOST_NAMES_BYTES).split(b"\n")
    return train, test, _class_names(layout, [line.strip() for line in lines], path)


def _binary_samples(layout: CifarLayout, path: Path) -> Samples:
    data = _read_bytes(layout, path, MOST_BYTES // len(layout.binary_train))
    record = layout.label_bytes + IMAGE_BYTES
    if not data or len(data) % record:
        raise DataError(f"{path} holds {len(data)} bytes; expected a multiple of {record}: unpack the archive again")
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    labels = rows[:, layout.label_bytes - 1]
    if labels.max() >= layout.num_classes:
        raise DataError(
            f"{path}: expected labels from 0 to {layout.num_classes - 1}, found {labels.max()}; unpack the archive "
            "again"
        )
    return _samples(rows[:, layout.label_bytes :], labels)


def _read_python(layout: CifarLayout, folder: Path) -> tuple[Samples, Samples, tuple[str, ...]]:
    train = _join([_python_samples(layout, folder / name) for name in layout.python_train])
    test = _python_samples(layout, folder / layout.python_test)
    meta = folder / layout.python_meta
    names = _field(_unpickle(layout, meta, MOST_NAMES_BYTES), layout.names_key, list, meta)
    return train, test, _class_names(layout, names, meta)


def _python_samples(layout: CifarLayout, path: Path) -> Samples:
    contents = _unpickle(layout, path, MOST_BYTES // len(layout.python_train))
    images = _field(contents, b"data", np.ndarray, path)
    labels = _field(contents, layout.label_key, list, path)
    if images.dtype != np.uint8 or images.shape != (len(labels), IMAGE_BYTES) or not labels:
        raise DataError(
            f"{path}: expected uint8 data of shape ({len(labels)}, {IMAGE_BYTES}), got {images.dtype} {images.shape}"
        )
    for label in labels:
        if type(label) is not int or not 0 <= label < layout.num_classes:
            # The value itself may be too long, or nested too deeply, to be shown.
            found = f"{label}" if type(label) is int and abs(label) < 2**63 else f"a {type(label).__name__}"
            raise DataError(
                f"{path}: expected whole numbers from 0 to {layout.num_classes - 1} as labels, found {found}; unpack "
                "the archive again"
            )
    return _samples(images, np.array(labels, np.int64))


def _samples(pixels: NDArray[np.uint8], labels: NDArray[Any]) -> Samples:
    return pixels.reshape(-1, 3, 32, 32).copy(), labels.astype(np.int64)


def _join(parts: Sequence[Samples]) -> Samples:
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _class_names(layout: CifarLayout, stored: list[Any], path: Path) -> tuple[str, ...]:
    names = []
    for name in stored:
        if not isinstance(name, str | bytes):
            raise DataError(f"{path}: expected class names that are text, found a {type(name).__name__}")
        try:
            text = name.decode("utf-8") if isinstance(name, bytes) else name.encode("utf-8").decode("utf-8")
        except UnicodeError as error:
            raise DataError(f"{path}: expected class names in UTF-8, found {printable(repr(name), 40)}") from error
        if text:
            names.append(text)
    if len(names) != layout.num_classes:
        raise DataError(
            f"{path}: expected {layout.num_classes} class names, found {len(names)}; unpack the archive again"
        )
    return tuple(names)


def _read_bytes(layout: CifarLayout, path: Path, most: int) -> bytes:
    if not path.exists():
        raise DataError(f"{layout.name}: expected the file {path}; unpack the archive again")
    return read_within(path, most, DataError)


def _unpickle(layout: CifarLayout, path: Path, most: int) -> dict[Any, Any]:
    data = _read_bytes(layout, path, most)
    try:
        contents = read_pickled(data)
    except ValueError as error:
        raise DataError(f"{path} is not a file of the Python version of {layout.name}: {one_line(error)}") from error
    if not isinstance(contents, dict):
        raise DataError(f"{path}: expected a dictionary, got a {type(contents).__name__}")
    return contents


def _field(contents: dict[Any, Any], key: bytes, kind: type[Any], path: Path) -> Any:
    value = contents.get(key, contents.get(key.decode()))
    if not isinstance(value, kind):
        raise DataError(f"{path}: expected a {kind.__name__} under {key.decode()!r}, got a {type(value).__name__}")
    return value
