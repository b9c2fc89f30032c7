"""Small data sets in the published formats, and how their files are damaged."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from tests.hostile.mutations import damage_bytes, damage_value

_CIFAR_PARTS = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


def write_data(root: Path) -> None:
    """One data set of each format under ``root``."""
    random = np.random.default_rng(0)
    _write_mnist(root / "mnist", random)
    _write_cifar(root / "cifar-10-batches-py", random)
    _write_tiny(root / "tiny-imagenet-200", random)
    for split, count in (("train", 6), ("test", 2)):
        for name in ("left", "right"):
            for i in range(count):
                _write_image(root / "folder" / split / name / f"{i}.{('png', 'jpg')[i % 2]}", (20, 30), random)


def _write_mnist(folder: Path, random: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 10)):
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        header = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes(), 1))
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, count) + labels.tobytes())


def _write_cifar(folder: Path, random: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for part in _CIFAR_PARTS:
        images = random.integers(0, 256, (20, 3072), np.uint8)
        (folder / part).write_bytes(pickle.dumps({b"data": images, b"labels": [i % 10 for i in range(20)]}, 2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"class %d" % i for i in range(10)]}, 2))


def _write_tiny(folder: Path, random: np.random.Generator) -> None:
    for name in ("n0", "n1"):
        for i in range(6):
            _write_image(folder / "train" / name / "images" / f"{name}_{i}.JPEG", (64, 64), random)
    for i in range(4):
        _write_image(folder / "val" / "images" / f"val_{i}.JPEG", (64, 64), random)
    (folder / "val" / "val_annotations.txt").write_text("".join(f"val_{i}.JPEG\tn{i % 2}\t0\t0\n" for i in range(4)))
    (folder / "words.txt").write_text("n0\tcat, domestic cat\nn1\tdog\n")


def _write_image(path: Path, size: tuple[int, int], random: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(path)


def damage_mnist(root: Path, random: Random) -> None:
    path = _one_of(root / "mnist", random)
    data = path.read_bytes()
    if path.suffix == ".gz" and random.random() < 0.7:  # inside of the archive
        return _write(path, gzip.compress(_damaged_header(gzip.decompress(data), random), 1), random)
    _write(path, _damaged_header(data, random) if path.suffix != ".gz" else damage_bytes(data, random), random)


def _damaged_header(data: bytes, random: Random) -> bytes:
    if random.random() < 0.5:
        return damage_bytes(data[:16], random) + data[16:]
    return damage_bytes(data, random) + bytes(random.choice((0, 0, 2**24)))


def damage_cifar(root: Path, random: Random) -> None:
    path = _one_of(root / "cifar-10-batches-py", random)
    data = path.read_bytes()
    kind = random.random()
    if kind < 0.15:
        data = _damaged_program(data, random)
    elif kind < 0.6:
        contents = pickle.loads(data)
        changed = damage_value({key: _lists(value) for key, value in contents.items()}, random)
        data = pickle.dumps(_arrays(changed), random.choice((0, 2, 4, 5)))
    else:
        data = damage_bytes(data, random)
    _write(path, data, random)


def _damaged_program(data: bytes, random: Random) -> bytes:
    """A pickle with further steps before one of its own: some of them would take all memory or never end."""
    at = random.choice([place for _, _, place in pickletools.genops(data) if place])
    twice, big = b"q\x00h\x00\x86", b"X\x00\x00\x10\x00" + b"a" * 2**20
    steps = random.choice(
        (
            b"K\x01" + twice * 80,
            b")" + b"\x85" * 2**20,
            b"]" * 2**20,
            b"(" * 2**20,
            big + b"q\x00" + b"c_codecs\nencode\nq\x02" + b"h\x02h\x00h\x00\x86R" * 2**14,
            big + b"q\x00" + b"cnumpy\ndtype\nq\x02" + b"h\x02h\x00\x85R" * 2**14,
            b"cposix\nsystem\nX\x09\x00\x00\x00touch ran\x85R",
            b"N",
            b"0",
            b"e",
            b"b",
            b"\x93",
        )
    )
    return data[:at] + steps + data[at:]


def _lists(value: Any) -> Any:
    """Few of an array's rows, as a list."""
    return value[:20, :4].tolist() if isinstance(value, np.ndarray) else value


def _arrays(value: Any) -> Any:
    if isinstance(value, dict) and isinstance(value.get(b"data"), list):
        try:
            with np.errstate(invalid="ignore"):
                few = np.array(value[b"data"]).astype(np.uint8)
            value[b"data"] = np.resize(few, (len(few), 3072))
        except (ValueError, TypeError, OverflowError):
            value[b"data"] = np.array([None] * 3)
    return value


def damage_tiny_imagenet(root: Path, random: Random) -> None:
    folder = root / "tiny-imagenet-200"
    path = random.choice((folder / "val" / "val_annotations.txt", folder / "words.txt", _one_of(folder, random)))
    _write(path, damage_bytes(path.read_bytes(), random), random)


def damage_folder(root: Path, random: Random) -> None:
    folder = root / "folder"
    path = _one_of(folder, random)
    kind = random.randrange(9)
    if kind == 0:
        path.rename(path.with_suffix(random.choice((".eps", ".tif", ".gif", ".psd", "", ".webp", ".PNG~"))))
    elif kind == 1:
        names = ("._a", ".hidden", "\x1b[2J", "a\nb", "x" * 200, "__MACOSX", "ü", "left ")
        (path.parent.parent / random.choice(names)).mkdir()
    elif kind == 2:
        (path.parent.parent / "gone").mkdir()
        path.parent.rename(path.parent.parent / "gone" / "there")
    elif kind in (3, 4):
        _write(path, _odd_image(random), random)
    elif kind == 5:
        sizes = random.choice(((0, 0), (1, 1), (2**31 - 1, 2**31 - 1), (60_000, 60_000), (1, 100_000)))
        _write(path, b"P6 %d %d 255\n" % sizes + bytes(300), random)
    else:
        _write(path, damage_bytes(path.read_bytes(), random), random)


def _odd_image(random: Random) -> bytes:
    """An image of another mode and format than the others, which says how the camera was held, perhaps damaged."""
    image = Image.frombytes("L", (40, 20), random.randbytes(800)).convert(
        random.choice(("L", "RGBA", "P", "I;16", "F"))
    )
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = random.choice((1, 3, 6, 8, 0, 77, 65535))
    image.save(buffer, "TIFF" if image.mode == "F" else random.choice(("PNG", "TIFF")), exif=exif)
    return buffer.getvalue() if random.random() < 0.4 else damage_bytes(buffer.getvalue(), random)


def _one_of(folder: Path, random: Random) -> Path:
    return random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))


def _write(path: Path, data: bytes, random: Random) -> None:
    """Write ``data``; now and then something that is no file, which must not be waited for."""
    if random.random() < 0.08:
        path.unlink()
        target: Callable[[], object] = random.choice(
            (lambda: os.mkfifo(path), path.mkdir, lambda: path.symlink_to("/dev/zero"), lambda: path.symlink_to("no"))
        )
        target()
    else:
        path.write_bytes(data)


DATA: dict[str, tuple[str, Callable[[Path, Random], None]]] = {
    "mnist": ("data", damage_mnist),
    "cifar10": ("data", damage_cifar),
    "tiny_imagenet": ("data", damage_tiny_imagenet),
    "folder": ("data/folder", damage_folder),
}
"""Data sets, the root that each is read from, and what damages one of its files."""
