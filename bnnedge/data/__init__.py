"""Data sets by name. One file each; add a file and a line here, and the command line and the tests know it.

An entry is a function ``load(data_root: Path | None) -> Source``; None is the folder that ``BNNEDGE_DATA`` names.
``load_dataset`` of ``bnnedge/data/dataset.py`` splits, resizes and normalises what it gives.
"""

from bnnedge.registry import Registry

DATASETS = Registry(
    "dataset",
    [
        ("digits", "bnnedge.data.digits:load_digits"),
        ("cifar10", "bnnedge.data.cifar10:load_cifar10"),
        ("cifar100", "bnnedge.data.cifar100:load_cifar100"),
        ("mnist", "bnnedge.data.mnist:load_mnist"),
        ("tiny_imagenet", "bnnedge.data.tiny_imagenet:load_tiny_imagenet"),
        ("imagenet", "bnnedge.data.imagenet:load_imagenet"),
    ],
)
