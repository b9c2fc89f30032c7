"""Data sets by name. One file each; add a file and a line here, and the CLI and the tests know it.

An entry is a function ``load(image_size: int | None, data_root: Path | None) -> Dataset``; None is the set's own size
and the folder that ``BNNEDGE_DATA`` names.
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
