"""Tiny-ImageNet and ImageNet on small folders laid out as they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bnnedge.data.augmentation import AREA, ASPECT, WindowAndFlip, random_window
from bnnedge.data.dataset import Dataset, load_dataset
from bnnedge.data.images.resize import central_box, resize_image
from bnnedge.data.preprocessing import Preprocessing
from bnnedge.errors import BnnedgeWarning, DataError

WNIDS = ("n01443537", "n02124075", "n09999999")
SHADES = (40, 130, 220)
"""The red of all images of a class."""
PER_CLASS = 30


def write_image(path: Path, width: int, height: int, red: int, green: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (red, green, 0)).save(path, quality=95)


def write_tiny(root: Path) -> Path:
    """Write the folder that the archive unpacks to: the images of val in one folder, their classes in a table."""
    folder = root / "tiny-imagenet-200"
    lines = []
    for wnid, red in zip(WNIDS, SHADES, strict=True):
        for i in range(PER_CLASS):
            write_image(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 64, 64, red, 4 * i)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    for i in range(6):
        write_image(folder / "val" / "images" / f"val_{i}.JPEG", 64, 64, SHADES[i % 3], 0)
        lines.append(f"val_{i}.JPEG\t{WNIDS[i % 3]}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(WNIDS)))
    words = "n01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\nn00000001\tnothing\n"
    (folder / "words.txt").write_text(words)
    return folder


def write_imagenet(folder: Path) -> Path:
    """Images of several sizes, as in the archives; one in grey and one in CMYK."""
    for wnid, red in zip(WNIDS, SHADES, strict=True):
        for i in range(PER_CLASS):
            write_image(folder / "train" / wnid / f"{wnid}_{i}.JPEG", 30 + i, 50 - i, red, 4 * i)
        for i in range(2):
            write_image(folder / "val" / wnid / f"ILSVRC2012_val_{wnid}_{i}.JPEG", 40, 60, red, 0)
    Image.new("L", (33, 44), 128).save(folder / "val" / WNIDS[0] / "ILSVRC2012_val_grey.JPEG")
    Image.new("CMYK", (33, 44), (0, 0, 0, 0)).save(folder / "val" / WNIDS[2] / "ILSVRC2012_val_zcmyk.JPEG")
    return folder


def raw(dataset: Dataset, split: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pixels [N, 3, H, W] from 0 to 255, and labels."""
    images, labels = dataset.arrays(split)  # type: ignore[arg-type]
    mean, std = (np.reshape(v, (1, 3, 1, 1)) for v in (dataset.info.preprocessing.mean, dataset.info.preprocessing.std))
    return (images * std + mean) * 255, labels


def check_shades(dataset: Dataset, split: str) -> None:
    """Each image has its class's red, within what JPEG makes of a uniform colour.

    Red is Y + 1.402 (Cr - 128). Y and Cr are rounded before and after coding, 1/2 each; at quality 95 the mean of a
    block is coded in steps of 2/8, an error of 1/8; red itself is rounded: 9/8 + 1.402 * 9/8 + 1/2 < 3.21.
    """
    pixels, labels = raw(dataset, split)
    np.testing.assert_allclose(pixels[:, 0], np.array(SHADES)[labels][:, None, None] + 0 * pixels[:, 0], atol=3.21)


@pytest.mark.parametrize("sorted_val", [False, True])
def test_tiny_imagenet(sorted_val: bool, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    if sorted_val:
        for i, wnid in enumerate(WNIDS * 2):
            (folder / "val" / wnid).mkdir(exist_ok=True)
            (folder / "val" / "images" / f"val_{i}.JPEG").rename(folder / "val" / wnid / f"val_{i}.JPEG")
        (folder / "val" / "val_annotations.txt").unlink()
    dataset = load_dataset("tiny_imagenet", data_root=tmp_path)
    info = dataset.info
    assert info.preprocessing.input_shape == (3, 64, 64)
    assert info.classes == ("goldfish", "Egyptian cat", "n09999999")
    assert [dataset.size(split) for split in ("train", "val", "test")] == [81, 9, 6]
    for split in ("train", "val", "test"):
        check_shades(dataset, split)
    assert sorted(dataset.arrays("test")[1].tolist()) == [0, 0, 1, 1, 2, 2]
    smaller = load_dataset("tiny_imagenet", image_size=20, data_root=tmp_path)
    assert smaller.arrays("test")[0].shape == (6, 3, 20, 20)
    check_shades(smaller, "test")


@pytest.mark.parametrize("where", ["imagenet", "ILSVRC2012", "."])
def test_imagenet(where: str, tmp_path: Path) -> None:
    folder = write_imagenet(tmp_path / where)
    dataset = load_dataset("imagenet", data_root=tmp_path)
    info = dataset.info
    assert (info.preprocessing.input_shape, info.classes) == ((3, 224, 224), WNIDS)
    assert [dataset.size(split) for split in ("train", "val", "test")] == [87, 3, 8]
    check_shades(dataset, "val")
    pixels, labels = raw(dataset, "test")  # by name: the grey image first, that in CMYK last
    assert labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    np.testing.assert_allclose(pixels[0], 128, atol=1)
    np.testing.assert_allclose(pixels[7], 255, atol=1)
    (folder / "val" / WNIDS[0] / "ILSVRC2012_val_grey.JPEG").unlink()
    with pytest.raises(DataError, match=r"ILSVRC2012_val_grey\.JPEG cannot be read: No such file"):
        dataset.arrays("test")


def test_evaluation_sees_the_centre(tmp_path: Path) -> None:
    """A square in the middle of a wide image, in a colour of its own."""
    write_imagenet(tmp_path)
    image = Image.new("RGB", (512, 256), (0, 0, 255))
    image.paste((255, 0, 0), (144, 16, 368, 240))
    image.save(tmp_path / "val" / WNIDS[0] / "ILSVRC2012_val_a.png")
    pixels, _ = raw(load_dataset("imagenet", data_root=tmp_path), "test")
    np.testing.assert_allclose(pixels[0, 0], 255, atol=1e-3)
    record = Preprocessing(3, 224, 224, 255.0, (0, 0, 0), (1, 1, 1), crop=224 / 256)
    assert central_box(512, 256, record) == (144, 16, 368, 240)


@pytest.mark.parametrize("name", ["tiny_imagenet", "imagenet"])
def test_augmentation_depends_on_an_images_own_numbers(name: str, tmp_path: Path) -> None:
    write_imagenet(tmp_path) if name == "imagenet" else write_tiny(tmp_path)
    dataset = load_dataset(name, image_size=24, data_root=tmp_path)
    batch = next(dataset.plan("train", 16, torch.Generator().manual_seed(0), augment=True))
    images, labels = batch.make()
    rows = torch.tensor([15, 3, 4])
    own, own_labels = batch.make(rows)
    assert torch.equal(own, images[rows]) and torch.equal(own_labels, labels[rows])
    assert images.shape == (16, 3, 24, 24) and images.dtype == torch.float32


def test_random_windows_fit_and_vary() -> None:
    random = np.random.RandomState(0)
    some_fit = {(500, 375): True, (31, 33): True, (1, 1): False, (2000, 40): False, (40, 2000): False}
    for (width, height), varies in some_fit.items():
        boxes = set()
        for _ in range(200):
            left, upper, right, lower = random_window(width, height, random.rand(WindowAndFlip.numbers).tolist())
            assert 0 <= left < right <= width and 0 <= upper < lower <= height
            boxes.add((left, upper, right, lower))
            if (width, height) == (500, 375):  # edges are rounded to pixels
                w, h = right - left, lower - upper
                assert ASPECT[0] - 0.02 < w / h < ASPECT[1] + 0.02
                assert AREA[0] - 0.01 < w * h / (width * height) <= AREA[1]
        assert len(boxes) > 150 if varies else len(boxes) == 1
    # No attempt fits: the widest window of an allowed aspect, in the middle.
    assert random_window(2000, 30, [1 - 2**-24] * WindowAndFlip.numbers) == (980, 0, 1020, 30)
    assert random_window(30, 2000, [1 - 2**-24, 0.0] * 11 + [0.0]) == (0, 980, 30, 1020)


def test_half_of_the_windows_are_mirrored() -> None:
    image = Image.new("RGB", (64, 64), (0, 0, 0))
    image.paste((255, 255, 255), (32, 0, 64, 64))
    record = Preprocessing(3, 16, 16, 255.0, (0, 0, 0), (1, 1, 1))
    augmentation = WindowAndFlip()
    whole = [1 - 2**-24, 0.5] * 10 + [0.0, 0.0]  # all of a square image
    for number, bright in ((0.49, 0), (0.5, 1)):
        numbers = [*whole, number]
        box = augmentation.window(64, 64, record, numbers)
        assert [*box] == [0, 0, 64, 64]
        stored = torch.from_numpy(np.asarray(resize_image(image, record, box)).copy()).permute(2, 0, 1)[None]
        pixels, _ = augmentation(stored, torch.zeros(1), torch.tensor([numbers]))
        halves = pixels[..., :7].float().mean(), pixels[..., 9:].float().mean()
        assert np.argmax(halves) == bright and max(halves) == 255 and min(halves) == 0


def test_windows_have_the_aspect_of_the_network_s_input() -> None:
    """Windows for an input that is twice as wide as high are from 3/2 to 8/3 as wide as high."""
    random = np.random.RandomState(1)
    for _ in range(50):
        left, upper, right, lower = random_window(900, 600, random.rand(WindowAndFlip.numbers).tolist(), shape=2.0)
        assert 1.46 < (right - left) / (lower - upper) < 2.71


def damage(folder: Path, name: str) -> None:
    if name == "an empty class":
        for path in (folder / "train" / WNIDS[1]).glob("*.JPEG"):
            path.unlink()
    elif name == "a class of val":
        (folder / "val" / WNIDS[1]).rename(folder / "val" / "n1")
    elif name == "a flat val":
        for path in (folder / "val").rglob("*.JPEG"):
            path.rename(folder / "val" / path.name)
        for wnid in WNIDS:
            (folder / "val" / wnid).rmdir()
    elif name == "no val":
        (folder / "val").rename(folder / "validation")
    else:
        for path in (folder / "train").rglob("*_[1-9]*.JPEG"):
            path.unlink()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("an empty class", r"n02124075: expected images such as \.jpg or \.png, found none"),
        ("a class of val", "expected the same classes in train and val, found 'n02124075' in one of them|'n1'"),
        ("a flat val", "val: expected a folder for each class with its images in it, found none"),
        ("no val", "expected the folder .*val with a folder for each class: No such file"),
        (
            "an image a class",
            "too few training samples to hold any out for validation; --validation-split none",
        ),
    ],
)
def test_a_damaged_imagenet_is_refused(name: str, words: str, tmp_path: Path) -> None:
    damage(write_imagenet(tmp_path / "imagenet"), name)
    with pytest.raises(DataError, match=words) as caught:
        load_dataset("imagenet", data_root=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_tiny_imagenet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiny_imagenet: expected the folder .*/tiny-imagenet-200$"):
        load_dataset("tiny_imagenet", data_root=tmp_path)
    table = write_tiny(tmp_path) / "val" / "val_annotations.txt"
    table.write_text("val_0.JPEG\tn0\t1\t2\t3\t4\n")
    with pytest.raises(DataError, match=r"val_annotations\.txt, line 1: expected a file of the folder images that"):
        load_dataset("tiny_imagenet", data_root=tmp_path)
    table.write_text("")
    with pytest.raises(DataError, match=r"val_annotations\.txt is empty"):
        load_dataset("tiny_imagenet", data_root=tmp_path)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\xff\xd8\xff\xe0" + bytes(100)])
def test_a_damaged_image_is_named(content: bytes, tmp_path: Path) -> None:
    path = write_tiny(tmp_path) / "val" / "images" / "val_3.JPEG"
    path.write_bytes(content)
    dataset = load_dataset("tiny_imagenet", data_root=tmp_path)
    with pytest.raises(DataError, match=r"val_3\.JPEG is damaged or no image") as caught:
        dataset.arrays("test")
    assert "\n" not in str(caught.value)


def test_a_table_of_tiny_imagenet_that_is_cut_off(tmp_path: Path) -> None:
    """A table that ends early at the end of a line is still a table, so the images without a class are counted."""
    table = write_tiny(tmp_path) / "val" / "val_annotations.txt"
    lines = table.read_text().splitlines()
    (table.parent / "images" / "._val_0.JPEG").write_bytes(b"no image")
    table.write_text("\n".join(lines[:4]))
    with pytest.warns(BnnedgeWarning, match=r"val_annotations\.txt names no class for 2 of the images of .*val/images"):
        assert load_dataset("tiny_imagenet", data_root=tmp_path).size("test") == 4
    table.write_text("\n".join([*lines, lines[2]]))
    with pytest.raises(DataError, match=r"line 7: expected a file of the folder images that no line before names"):
        load_dataset("tiny_imagenet", data_root=tmp_path)


def test_further_classes_in_val_of_tiny_imagenet(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    (folder / "val" / "val_annotations.txt").unlink()
    for wnid in (*WNIDS, "n1"):
        write_image(folder / "val" / wnid / "0.JPEG", 64, 64, 9, 9)
    with pytest.raises(DataError, match="expected the same classes in train and val, found 'n1' in one of them"):
        load_dataset("tiny_imagenet", data_root=tmp_path)
