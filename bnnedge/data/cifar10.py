"""CIFAR-10: 50,000 training and 10,000 test colour images of 32x32 pixels in 10 classes."""

from __future__ import annotations

from pathlib import Path

from bnnedge.data.files.cifar import CifarLayout, load_cifar
from bnnedge.data.source import Source

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


def load_cifar10(data_root: Path | None = None) -> Source:
    """CIFAR-10 from ``data_root`` (see ``load_cifar``)."""
    return load_cifar(LAYOUT, data_root)
