"""CIFAR-10: 50,000 training and 10,000 test colour images of 32x32 pixels in 10 classes."""

from __future__ import annotations

from pathlib import Path

from bnnedge.data.cifar_files import CifarLayout, load_cifar
from bnnedge.data.dataset import Dataset

LAYOUT = CifarLayout(
    name="cifar10",
    num_classes=10,
    binary_folder="cifar-10-batches-bin",
    binary_train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    binary_test="test_batch.bin",
    binary_names="batches.meta.txt",
    label_bytes=1,
    python_folder="cifar-10-batches-py",
    python_train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    python_test="test_batch",
    python_meta="batches.meta",
    label_key=b"labels",
    names_key=b"label_names",
)


def load_cifar10(image_size: int | None = None, data_root: Path | None = None) -> Dataset:
    """CIFAR-10 from ``data_root`` (see ``load_cifar``), resized to ``image_size`` (32) pixels."""
    return load_cifar(LAYOUT, image_size, data_root)
