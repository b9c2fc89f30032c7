"""MNIST on small files written byte by byte in the published format."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bnnedge.data.dataset import load_dataset
from bnnedge.errors import DataError

SIZES = {"train": 100, "t10k": 30}


def pixels(part: str) -> NDArray[np.uint8]:
    return np.random.RandomState(SIZES[part]).randint(0, 256, (SIZES[part], 28, 28)).astype(np.uint8)


def labels(part: str) -> NDArray[np.uint8]:
    return (np.arange(SIZES[part]) % 10).astype(np.uint8)


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(root: Path, folder: str = "mnist", packed: bool = False) -> Path:
    target = root / folder
    target.mkdir(parents=True)
    for part in SIZES:
        for name, array in (("images-idx3", pixels(part)), ("labels-idx1", labels(part))):
            data = idx(array)
            path = target / f"{part}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(data) if packed else data)
    return target


@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_pixel_and_label_is_read(folder: str, packed: bool, tmp_path: Path) -> None:
    write(tmp_path, folder, packed)
    dataset = load_dataset("mnist", data_root=tmp_path)
    record = dataset.info.preprocessing
    assert (record.input_shape, dataset.info.classes) == ((1, 28, 28), tuple("0123456789"))
    assert (dataset.size("train"), dataset.size("val"), dataset.size("test")) == (90, 10, 30)
    images, found = dataset.arrays("test")
    np.testing.assert_array_equal(found, labels("t10k"))
    raw = (images[:, 0] * record.std[0] + record.mean[0]) * 255
    np.testing.assert_allclose(raw, pixels("t10k"), atol=1e-4)  # three float32 roundings of values up to 255
    seen = {image.tobytes() for split in ("train", "val") for image in dataset.arrays(split)[0]}
    assert len(seen) == 100
    np.testing.assert_array_equal(np.bincount(dataset.arrays("val")[1]), np.ones(10))


def test_another_size(tmp_path: Path) -> None:
    write(tmp_path)
    assert load_dataset("mnist", image_size=32, data_root=tmp_path).arrays("val")[0].shape == (10, 1, 32, 32)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mnist: expected the folder .*/mnist or MNIST/raw there"):
        load_dataset("mnist", data_root=tmp_path)
    (write(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"expected the file .*t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte\.gz"):
        load_dataset("mnist", data_root=tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("images-idx3", idx(pixels("train"))[:-1], "expected 78,400 bytes behind the header, found 78,399"),
        ("images-idx3", b"", "no IDX file"),
        ("images-idx3", idx(labels("train")), "in 3 dimensions"),
        ("images-idx3", idx(pixels("train")[:, :, 1:]), "28 x 28 pixels, found 100 x 28 x 27"),
        ("images-idx3", idx(pixels("train")[:0]), "28 x 28 pixels, found 0"),
        ("labels-idx1", idx(labels("train")[1:]), "expected 100 labels from 0 to 9"),
        ("labels-idx1", idx(labels("train") + np.uint8(1)), "expected 100 labels from 0 to 9"),
        ("labels-idx1", bytes([0, 0, 9, 1]) + idx(labels("train"))[4:], "no IDX file"),
    ],
)
def test_damaged_files_are_refused(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    path = write(tmp_path) / f"train-{name}-ubyte"
    path.write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        load_dataset("mnist", data_root=tmp_path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", range(16))
def test_a_header_that_is_cut_at_any_byte(keep: int, tmp_path: Path) -> None:
    path = write(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="is no IDX file of bytes in 3 dimensions, or cut off; download it again"):
        load_dataset("mnist", data_root=tmp_path)


def test_a_header_that_promises_too_much(tmp_path: Path) -> None:
    path = write(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12)
    with pytest.raises(DataError, match="expected at most 134,217,728 bytes, found 4294967295 x 4294967295 x 42949"):
        load_dataset("mnist", data_root=tmp_path)


def test_an_archive_that_unpacks_to_more_than_it_promises(tmp_path: Path) -> None:
    """Only as much is unpacked as the header says: these 200 MiB of zeros would be in memory otherwise."""
    path = write(tmp_path, packed=True) / "train-images-idx3-ubyte.gz"
    zeros = zlib.compressobj(9, wbits=31)
    data = zeros.compress(idx(pixels("train")))
    block = bytes(2**20)
    data += b"".join(zeros.compress(block) for _ in range(200)) + zeros.flush()
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(DataError, match="expected 78,400 bytes behind the header, found more"):
        load_dataset("mnist", data_root=tmp_path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = write(tmp_path) / "train-images-idx3-ubyte"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="train-images-idx3-ubyte: expected a file, found a pipe or a device"):
        load_dataset("mnist", data_root=tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 300])
def test_a_damaged_archive_is_refused(keep: int, tmp_path: Path) -> None:
    path = write(tmp_path, packed=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz"):
        load_dataset("mnist", data_root=tmp_path)
