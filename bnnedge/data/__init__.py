"""Data sets, preprocessings and augmentations by name. Add a function or class, and a line here.

A data set, in a file of its own, is a function ``load(data_root: Path | None) -> Source``; None is the folder that
``BNNEDGE_DATA`` names. ``load_dataset`` of ``bnnedge/data/dataset.py`` splits, resizes and normalises what it gives.
A preprocessing is a function that makes a record of the data set's own one (``bnnedge/data/preprocessing.py``), an
augmentation a class of ``bnnedge/data/augmentation.py``. The command line and the tests know every entry.
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
        ("folder", "bnnedge.data.folder:load_folder"),
    ],
)

PREPROCESSINGS = Registry(
    "preprocessing",
    [
        ("own", "bnnedge.data.preprocessing:own"),
        ("unit", "bnnedge.data.preprocessing:unit"),
        ("symmetric", "bnnedge.data.preprocessing:symmetric"),
        ("imagenet", "bnnedge.data.preprocessing:imagenet"),
    ],
)

AUGMENTATIONS = Registry(
    "augmentation",
    [
        ("crop_flip", "bnnedge.data.augmentation:CropAndFlip"),
        ("flip", "bnnedge.data.augmentation:Flip"),
        ("shift", "bnnedge.data.augmentation:Shift"),
        ("window_flip", "bnnedge.data.augmentation:WindowAndFlip"),
    ],
)
