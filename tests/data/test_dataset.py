"""Batches, augmentation, resizing and splits of the data-set contract, and the digits themselves."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from bnnedge.data.augmentation import Augmentation, random_crop, random_flip
from bnnedge.data.dataset import SPLITS, Dataset, load_dataset, load_dataset_as, prepare
from bnnedge.data.images.resize import resize_images
from bnnedge.data.images.splits import stratified_split
from bnnedge.data.images.statistics import channel_statistics
from bnnedge.data.info import DatasetInfo
from bnnedge.data.preprocessing import Preprocessing
from bnnedge.data.source import source_of_tensors
from bnnedge.errors import ConfigError, DataError, UnknownNameError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class CropTwo(Augmentation):
    """A random crop out of 2 pixels of padding, mirrored at random."""

    def move(self, images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        return random_flip(random_crop(images, 2, numbers[:, :2]), numbers[:, 2])


def small(train: int = 9, dtype: torch.dtype = torch.uint8) -> Dataset:
    """Images whose pixels are all different, so that order and augmentation show."""
    splits: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for split, n in zip(SPLITS, (train, 5, 7), strict=True):
        raw = torch.randint(0, 256, (n, 3, 5, 5), generator=generator(n), dtype=torch.uint8)
        splits[split] = (raw if dtype == torch.uint8 else raw.float() / 255, torch.arange(n) % 2)
    scale = 255.0 if dtype == torch.uint8 else 1.0
    return prepare(source_of_tensors("small", ("a", "b"), splits, scale=scale, augmentation=CropTwo()))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def test_digits_split_is_fixed_stratified_and_complete(digits: Dataset) -> None:
    assert [digits.size(s) for s in SPLITS] == [1259, 179, 359]
    counts = {s: np.bincount(digits.arrays(s)[1], minlength=10) for s in SPLITS}
    total = np.sum(list(counts.values()), axis=0)
    np.testing.assert_array_equal(counts["val"], [round(0.1 * int(n)) for n in total])
    np.testing.assert_array_equal(counts["test"], [round(0.2 * int(n)) for n in total])
    seen = {split: {image.tobytes() for image in digits.arrays(split)[0]} for split in SPLITS}
    assert len(seen["train"] | seen["val"] | seen["test"]) == sum(len(s) for s in seen.values())


def test_digits_info(digits: Dataset) -> None:
    info = digits.info
    assert (info.name, info.task, info.outputs, info.preprocessing.input_shape) == (
        "digits",
        "classification",
        10,
        (1, 16, 16),
    )
    assert info.classes == tuple("0123456789")
    assert DatasetInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info


def test_digits_arrays_are_normalised_by_the_training_split(digits: Dataset) -> None:
    images, labels = digits.arrays("train")
    assert images.dtype == np.float32
    assert labels.dtype == np.int64
    assert images.shape == (digits.size("train"), 1, 16, 16)
    # Each of ~320,000 float32 values near 1 is off by at most 2^-24 of itself; their float64 mean by no more than that.
    assert abs(images.astype(np.float64).mean()) < 1e-6
    assert abs(images.astype(np.float64).std() - 1) < 1e-6


@pytest.mark.parametrize("size", [1, 3, 8, 31, 32])
def test_digits_in_other_sizes(size: int) -> None:
    dataset = load_dataset("digits", image_size=size)
    assert dataset.arrays("val")[0].shape[1:] == (1, size, size)
    images, _ = next(dataset.batches("train", 4, generator(), augment=True))
    assert images.shape == (4, 1, size, size)


def test_digits_keep_the_split_in_every_size(digits: Dataset) -> None:
    for split in SPLITS:
        np.testing.assert_array_equal(load_dataset("digits", image_size=8).arrays(split)[1], digits.arrays(split)[1])


def test_from_dict_names_what_is_missing() -> None:
    with pytest.raises(DataError, match="the description of the data set lacks outputs, preprocessing"):
        DatasetInfo.from_dict({"name": "d", "task": "classification", "classes": []})
    with pytest.raises(DataError, match="the preprocessing record lacks scale, std"):
        Preprocessing.from_dict({"channels": 1, "height": 2, "width": 3, "mean": [0.5]})


def test_unknown_name_and_size_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="known: digits, cifar10, cifar100, mnist"):
        load_dataset("svhn")
    with pytest.raises(DataError, match="at least 1 pixel"):
        load_dataset("digits", image_size=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_batches_without_generator_are_the_split_in_order(dtype: torch.dtype) -> None:
    dataset = small(dtype=dtype)
    batches = list(dataset.batches("train", 4))
    assert [len(y) for _, y in batches] == [4, 4, 1]
    images, labels = dataset.arrays("train")
    np.testing.assert_array_equal(torch.cat([x for x, _ in batches]).numpy(), images)
    np.testing.assert_array_equal(torch.cat([y for _, y in batches]).numpy(), labels)


@pytest.mark.parametrize(("train", "sizes"), [(9, [4, 4]), (10, [4, 4, 2]), (8, [4, 4]), (3, [3]), (1, [])])
def test_training_leaves_out_a_last_batch_of_one(train: int, sizes: list[int]) -> None:
    images = torch.rand((train, 1, 2, 2), generator=generator())
    samples = images, torch.zeros(train, dtype=torch.long)
    dataset = prepare(source_of_tensors("d", ("a",), {"train": samples, "val": samples, "test": samples}))
    assert [len(y) for _, y in dataset.batches("train", 4, generator())] == sizes
    assert dataset.steps("train", 4) == len(sizes)


def test_batches_are_a_function_of_the_generator_alone() -> None:
    def epoch(seed: int) -> torch.Tensor:
        torch.rand(3)  # the global generator must not matter
        return torch.cat([x for x, _ in small().batches("train", 4, generator(seed), augment=True)])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))


def test_a_part_of_a_batch_is_made_as_in_the_whole() -> None:
    batch = next(small(33).plan("train", 16, generator(), augment=True))
    images, labels = batch.make()
    assert len(batch) == len(labels) == len(images) == 16
    rows = torch.tensor([15, 3, 4])
    own, own_labels = batch.make(rows)
    assert torch.equal(own, images[rows]) and torch.equal(own_labels, labels[rows])


def test_random_crop_reaches_every_corner() -> None:
    """The smallest and the largest numbers that float32 holds in [0, 1) are the first and the last row and column."""
    images = torch.rand((1, 1, 3, 4), generator=generator())
    last = 1 - 2**-24
    for padding in range(1, 33):
        padded = torch.nn.functional.pad(images, (padding,) * 4)
        for row, column in ((0.0, last), (last, 0.0), (last, last)):
            top, left = (0 if u == 0 else 2 * padding for u in (row, column))
            window = padded[:, :, top : top + 3, left : left + 4]
            assert torch.equal(random_crop(images, padding, torch.tensor([[row, column]])), window)


def test_augmentation_without_generator_is_refused() -> None:
    with pytest.raises(ValueError, match="generator"):
        next(small().batches("train", 4, augment=True))


def test_shuffling_keeps_images_and_labels_together() -> None:
    dataset = small()
    images, labels = dataset.arrays("train")
    label_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for x, y in dataset.batches("train", 4, generator()):
        assert [label_of[image.numpy().tobytes()] for image in x] == y.tolist()


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_random_crop_is_a_window_of_the_padded_image(padding: int) -> None:
    images = torch.randint(1, 256, (33, 3, 5, 6), generator=generator(), dtype=torch.uint8)
    cropped = random_crop(images, padding, torch.rand((33, 2), generator=generator(3)))
    offsets = set()
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    for original, window in zip(padded, cropped, strict=True):
        fits = [
            (i, j)
            for i in range(2 * padding + 1)
            for j in range(2 * padding + 1)
            if torch.equal(original[:, i : i + 5, j : j + 6], window)
        ]
        assert fits
        offsets.add(fits[0])
    assert len(offsets) > 1 or padding == 0


def test_random_flip_mirrors_about_half() -> None:
    images = torch.rand((400, 2, 3, 4), generator=generator())
    flipped = random_flip(images, torch.rand(400, generator=generator(1)))
    mirrored = [bool((a == b.flip(-1)).all()) for a, b in zip(flipped, images, strict=True)]
    kept = [bool((a == b).all()) for a, b in zip(flipped, images, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    # Binomial(400, 1/2) has standard deviation 10; the seed is fixed.
    assert 150 < sum(mirrored) < 250


def test_channel_statistics_agree_with_numpy_over_many_chunks() -> None:
    images = torch.randint(0, 256, (9000, 2, 2, 2), generator=generator(), dtype=torch.uint8)
    mean, std = channel_statistics(images, 255.0)
    reference = images.numpy().astype(np.float64) / 255
    # Pixels are rounded to float32, half a unit in 2^24 relative, before the float64 sums.
    np.testing.assert_allclose(mean, reference.mean((0, 2, 3)), rtol=2**-23)
    np.testing.assert_allclose(std, reference.std((0, 2, 3)), rtol=2**-21)


def test_a_constant_channel_is_refused() -> None:
    with pytest.raises(DataError, match="constant"):
        channel_statistics(torch.zeros(4, 1, 2, 2), 1.0)


def record(height: int, width: int, channels: int = 1, **fields: Any) -> Preprocessing:
    return Preprocessing(channels, height, width, 255.0, (0.0,) * channels, (1.0,) * channels, **fields)


def test_resize_bilinear_by_two() -> None:
    images = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    # Pixel centres at 1/4 and 3/4 of each old pixel: weights 1/4 and 3/4, the border repeated.
    row = torch.tensor([0.0, 0.25, 0.75, 1.0])
    expected = row + 2 * row[:, None]
    assert torch.equal(resize_images(images, record(4, 4))[0, 0], expected)
    assert resize_images(images, record(2, 2)) is images


def test_resize_of_one_side_and_by_the_nearest_pixel() -> None:
    images = torch.tensor([[[[0, 10], [20, 30]]]], dtype=torch.uint8)
    assert resize_images(images, record(2, 4, resize="nearest"))[0, 0].tolist() == [[0, 0, 10, 10], [20, 20, 30, 30]]


def test_a_crop_in_memory_is_the_central_part_with_the_network_s_aspect() -> None:
    """Three quarters of the largest 1:2 window in 8 x 16 pixels are 6 x 12; of the largest square they are 6 x 6."""
    images = torch.arange(128, dtype=torch.float32).view(1, 1, 8, 16)
    assert torch.equal(resize_images(images, record(6, 12, crop=0.75)), images[:, :, 1:7, 2:14])
    assert torch.equal(resize_images(images, record(6, 6, crop=0.75)), images[:, :, 1:7, 5:11])


def test_resize_keeps_bytes() -> None:
    images = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    resized = resize_images(images, record(20, 20, channels=3))
    assert resized.dtype == torch.uint8
    assert bool((resized == 255).all())


def test_stratified_split_is_frozen() -> None:
    labels = np.array([0, 1] * 10)
    parts = stratified_split(labels, (0.1, 0.2), seed=7)
    assert sorted(np.concatenate(parts).tolist()) == list(range(20))
    assert [len(part) for part in parts] == [2, 4, 14]
    assert parts[0].tolist() == stratified_split(labels, (0.1, 0.2), seed=7)[0].tolist()
    assert {labels[i] for i in parts[0]} == {0, 1}


def test_pixels_are_normalised_alike_by_numpy_and_torch() -> None:
    pixels = torch.randint(0, 256, (7, 3, 5, 4), generator=generator(), dtype=torch.uint8)
    made = Preprocessing(3, 5, 4, 255.0, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    found = made.normalize(pixels)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(made.normalize(pixels.numpy()), found.numpy())
    digits = Preprocessing(1, 5, 4, 16.0, (0.3,), (0.32,))
    values = torch.rand((3, 1, 5, 4), generator=generator()) * 16
    np.testing.assert_array_equal(digits.normalize(values.numpy()), digits.normalize(values).numpy())


def test_images_that_are_not_square() -> None:
    dataset = load_dataset("digits", (12, 20))
    images, _ = next(dataset.batches("train", 5, generator(), augment=True))
    assert images.shape == (5, 1, 12, 20)
    assert dataset.info.preprocessing.size == (12, 20)


@pytest.mark.parametrize(("name", "lowest", "highest"), [("unit", 0.0, 1.0), ("symmetric", -1.0, 1.0)])
def test_a_preprocessing_by_name(name: str, lowest: float, highest: float) -> None:
    dataset = load_dataset("digits", 8, preprocess=name)
    images, _ = dataset.arrays("test")
    assert (float(images.min()), float(images.max())) == (lowest, highest) == dataset.info.preprocessing.input_range


def test_preprocessings_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="digits: preprocessing imagenet is for images of 3 channels, these have 1"):
        load_dataset("digits", preprocess="imagenet")
    with pytest.raises(UnknownNameError, match="unknown preprocessing 'cifar'; known: own, unit"):
        load_dataset("digits", preprocess="cifar")


def test_validation_splits(digits: Dataset) -> None:
    everything = load_dataset("digits", validation_split="none")
    assert (everything.size("train"), everything.has("val")) == (1259 + 179, False)
    with pytest.raises(DataError, match="digits has no val split here"):
        everything.size("val")
    held_out = load_dataset("digits", validation_split=0.25)
    labels = {split: np.bincount(held_out.arrays(split)[1]) for split in ("train", "val")}
    every = np.bincount(everything.arrays("train")[1])
    np.testing.assert_array_equal(labels["val"], [round(0.25 * int(n)) for n in every])
    np.testing.assert_array_equal(labels["train"] + labels["val"], every)
    for dataset in (everything, held_out):
        np.testing.assert_array_equal(dataset.arrays("test")[1], digits.arrays("test")[1])
    for share in (0.0, 1.0, 1e-6, 7):
        with pytest.raises(ConfigError, match="validation_split"):
            load_dataset("digits", validation_split=share)


def test_augmentations_by_name(digits: Dataset) -> None:
    plain = load_dataset("digits", augment="none")
    first = next(plain.plan("train", 7, generator(), augment=True))
    assert first.numbers is None
    images, labels = first.make()
    order = torch.randperm(1259, generator=generator())[:7]
    assert torch.equal(images, plain.samples("train", order)[0]) and torch.equal(
        labels, plain.samples("train", order)[1]
    )
    mirrored = load_dataset("digits", augment="flip")
    batch = next(mirrored.plan("train", 64, generator(), augment=True))
    assert batch.numbers is not None
    flips = batch.numbers[:, 0] < 0.5
    still = mirrored.samples("train", batch.indices)[0]
    assert torch.equal(batch.make()[0], torch.where(flips.view(-1, 1, 1, 1), still.flip(-1), still))
    with pytest.raises(UnknownNameError, match="unknown augmentation 'mixup'; known: crop_flip"):
        load_dataset("digits", augment="mixup")


def test_targets_that_are_images_move_along() -> None:
    """The target is the image itself, as a mask [N, H, W]; after a crop and a flip it still is."""
    images = torch.randint(1, 256, (16, 1, 6, 5), generator=generator(), dtype=torch.uint8)
    moved, masks = CropTwo()(images, images[:, 0], torch.rand((16, 3), generator=generator(1)))
    assert torch.equal(moved[:, 0], masks) and not torch.equal(moved, images)
    labels = torch.arange(16)
    assert CropTwo()(images, labels, torch.rand((16, 3)))[1] is labels


def test_a_data_set_is_made_again_as_it_was_described(digits: Dataset) -> None:
    """A checkpoint or a file may name another mean than the data set's own, or hold a description of the old form."""
    info = load_dataset("digits", 8, preprocess="symmetric", validation_split=0.2).info
    again = load_dataset_as(info)
    assert again.info == info
    assert (float(again.arrays("test")[0].min()), again.size("val")) == (-1.0, 287)
    own = digits.info.preprocessing
    old = {
        "name": "digits",
        "num_classes": 10,
        "class_names": list("0123456789"),
        "in_channels": 1,
        "image_size": 16,
        "mean": list(own.mean),
        "std": list(own.std),
    }
    assert DatasetInfo.from_dict(old) == digits.info
    with pytest.raises(DataError, match="digits does not fit: the network was trained for 2 classes"):
        load_dataset_as(DatasetInfo.from_dict({**old, "class_names": ["a", "b"], "num_classes": 2}))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("mean", "x", "mean: input should be a valid array"),
        ("mean", [0.1, 0.2], "mean must be 1 numbers, one a channel"),
        ("std", [0.0], "std.0: input should be greater than"),
        ("std", [float("nan")], "expected finite numbers"),
        ("height", 0, "height: input should be greater than or equal to 1"),
        ("resize", "lanczos", "resize: input should be 'bilinear'"),
        ("crop", 1.5, "crop must be above 0 and at most 1"),
        ("code", "import os", "code: unexpected keyword argument"),
    ],
)
def test_a_damaged_record_is_refused(field: str, value: Any, words: str) -> None:
    good = {"channels": 1, "height": 8, "width": 8, "scale": 255.0, "mean": [0.5], "std": [0.5]}
    assert Preprocessing.from_dict(good).size == (8, 8)
    with pytest.raises(DataError, match=words) as caught:
        Preprocessing.from_dict({**good, field: value})
    assert "\n" not in str(caught.value)
