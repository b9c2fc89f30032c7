"""Batches, augmentation, resizing and splits of the data-set contract, and the digits themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bnnedge.data.dataset import (
    SPLITS,
    Dataset,
    DatasetInfo,
    MemoryDataset,
    Split,
    channel_statistics,
    load_dataset,
    random_crop,
    random_flip,
    resize_images,
    stratified_split,
)
from bnnedge.errors import DataError, UnknownNameError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(train: int = 9, dtype: torch.dtype = torch.uint8) -> Dataset:
    """Images whose pixels are all different, so that order and augmentation show."""
    splits: dict[Split, tuple[torch.Tensor, torch.Tensor]] = {}
    for split, n in zip(SPLITS, (train, 5, 7), strict=True):
        raw = torch.randint(0, 256, (n, 3, 5, 5), generator=generator(n), dtype=torch.uint8)
        splits[split] = (raw if dtype == torch.uint8 else raw.float() / 255, torch.arange(n) % 2)
    return MemoryDataset("small", ("a", "b"), splits, lambda x, u: random_flip(random_crop(x, 2, u[:, :2]), u[:, 2]))


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
    assert (info.name, info.num_classes, info.in_channels, info.image_size) == ("digits", 10, 1, 16)
    assert info.class_names == tuple("0123456789")
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
    with pytest.raises(DataError, match="lacks class_names, std"):
        DatasetInfo.from_dict({k: 1 for k in ("name", "num_classes", "in_channels", "image_size", "mean")})


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
    dataset = MemoryDataset(
        "d",
        ("a",),
        {s: (torch.rand((train, 1, 2, 2), generator=generator()), torch.zeros(train)) for s in SPLITS},
        lambda x, u: x,
    )
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
    mean, std = channel_statistics(images)
    reference = images.numpy().astype(np.float64) / 255
    # Pixels are rounded to float32, half a unit in 2^24 relative, before the float64 sums.
    np.testing.assert_allclose(mean, reference.mean((0, 2, 3)), rtol=2**-23)
    np.testing.assert_allclose(std, reference.std((0, 2, 3)), rtol=2**-21)


def test_a_constant_channel_is_refused() -> None:
    with pytest.raises(DataError, match="constant"):
        channel_statistics(torch.zeros(4, 1, 2, 2))


def test_resize_bilinear_by_two() -> None:
    images = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    # Pixel centres at 1/4 and 3/4 of each old pixel: weights 1/4 and 3/4, the border repeated.
    row = torch.tensor([0.0, 0.25, 0.75, 1.0])
    expected = row + 2 * row[:, None]
    assert torch.equal(resize_images(images, 4)[0, 0], expected)
    assert resize_images(images, 2) is images


def test_resize_keeps_bytes() -> None:
    images = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    resized = resize_images(images, 20)
    assert resized.dtype == torch.uint8
    assert bool((resized == 255).all())


def test_stratified_split_is_frozen() -> None:
    labels = np.array([0, 1] * 10)
    splits = stratified_split(labels, 0.1, 0.2, seed=7)
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(20))
    assert [len(splits[s]) for s in SPLITS] == [14, 2, 4]
    assert splits["val"].tolist() == stratified_split(labels, 0.1, 0.2, seed=7)["val"].tolist()
    assert {labels[i] for i in splits["val"]} == {0, 1}
