"""CIFAR-100: 50,000 training and 10,000 test colour images of 32x32 pixels in 100 (fine) classes."""

from __future__ import annotations

from pathlib import Path

from bnnedge.data.files.cifar import CifarLayout, load_cifar
from bnnedge.data.source import Source

LAYOUT = CifarLayout(
    name="cifar100",
    num_classes=100,
    binary_folder="cifar-100-binary",
    binary_train=("train.bin",),
    binary_test="test.bin",
    binary_names="fine_label_names.txt",
    label_bytes=2,
    python_folder="cifar-100-python",
    python_train=("train",),
    python_test="test",
    python_meta="meta",
    label_key=b"fine_labels",
    names_key=b"fine_label_names",
)


def load_cifar100(data_root: Path | None = None) -> Source:
    """CIFAR-100 from ``data_root`` (see ``load_cifar``)."""
    return load_cifar(LAYOUT, data_root)
