"""Folders of one's own images: what counts as an image and a class, its brightness, and what is said of the rest."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bnnedge.cli import main
from bnnedge.data.dataset import Dataset, Split, load_dataset
from bnnedge.data.images.decode import suffixes
from bnnedge.errors import BnnedgeWarning, DataError

SIZE = 24


def write_folder(root: Path, make: Callable[[int], Image.Image] | None = None, suffix: str = ".png") -> Path:
    """Images of two classes in ``train`` and ``test``; ``make`` is given the number of an image."""
    make = make or (lambda i: Image.new("RGB", (SIZE, SIZE), (20 * i, 255 - 20 * i, 7)))
    for split, count in (("train", 10), ("test", 2)):
        for name in ("left", "right"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                make(i).save(folder / f"{i}{suffix}")
    return root


def load(root: Path, **options: Any) -> Dataset:
    return load_dataset("folder", image_size=SIZE, data_root=root, **options)


def pixels(dataset: Dataset, split: Split = "test") -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = dataset.read(split, torch.arange(dataset.size(split))).numpy()
    return found


def test_one_own_folder_is_trained_exported_and_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)

    def noisy(i: int) -> Image.Image:
        return Image.fromarray(random.integers(0, 256, (30, 40), np.uint8))

    write_folder(tmp_path / "photos", noisy)
    monkeypatch.chdir(tmp_path)
    train = "train --method ste --model resnet20_1w1a --dataset folder --data-root photos --image-size 16 --epochs 1"
    assert main([*train.split(), "--batch-size", "9", "--threads", "1", "--device", "cpu", "--out", "run"]) == 0
    assert main(["export", "run", "--target", "onnx", "-o", "m.onnx"]) == 0
    assert main(["evaluate", "m.onnx", "--data-root", "photos"]) == 0


def test_splits_classes_and_channels(tmp_path: Path) -> None:
    dataset = load(write_folder(tmp_path))
    assert dataset.info.classes == ("left", "right")
    assert [dataset.size(split) for split in ("train", "val", "test")] == [18, 2, 4]
    assert sorted(dataset.targets("val").tolist()) == [0, 1]
    assert dataset.info.preprocessing.input_shape == (3, SIZE, SIZE)
    np.testing.assert_array_equal(pixels(dataset)[1, :, 3, 4], [20, 235, 7])


def test_a_validation_folder_is_the_validation_split(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    for name in ("left", "right"):
        (root / "val" / name).mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE), (9, 8, 7)).save(root / "val" / name / "a.bmp")
    dataset = load(root)
    assert [dataset.size(split) for split in ("train", "val", "test")] == [20, 2, 4]
    np.testing.assert_array_equal(pixels(dataset, "val")[:, :, 0, 0], [[9, 8, 7]] * 2)
    (root / "test").rename(root / "unused")
    assert [load(root).size(split) for split in ("train", "val", "test")] == [18, 2, 2]


def test_grey_images_make_a_network_of_one_channel(tmp_path: Path) -> None:
    root = write_folder(tmp_path, lambda i: Image.new("L", (SIZE, SIZE), 10 * i))
    dataset = load(root)
    assert dataset.info.preprocessing.input_shape == (1, SIZE, SIZE)
    np.testing.assert_array_equal(pixels(dataset)[:, 0, 5, 6], [0, 10, 0, 10])
    Image.new("RGB", (SIZE, SIZE), (1, 2, 3)).save(root / "train" / "left" / "colour.png")
    assert load(root).info.preprocessing.channels == 3


def test_a_class_of_one_image_is_trained_on(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    for split in ("train", "test"):
        (root / split / "rare").mkdir()
        Image.new("RGB", (8, 8)).save(root / split / "rare" / "only.png")
    dataset = load(root)
    assert [dataset.size(split) for split in ("train", "val", "test")] == [19, 2, 5]
    assert 2 in dataset.targets("train").tolist()


@pytest.mark.parametrize(
    "name",
    [".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir", "._left", "$RECYCLE.BIN", "lost+found", "backup~"],
)
def test_hidden_folders_are_no_classes(name: str, tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    (root / "train" / name).mkdir()
    Image.new("RGB", (8, 8)).save(root / "train" / name / "0-checkpoint.png")
    (root / "test" / name).mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(root).info.classes == ("left", "right")


def test_leftovers_are_no_images(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    for name in ("._0.png", ".0.png.swp", "0.png~", "~$0.png", "Thumbs.db", "desktop.ini", ".DS_Store"):
        (root / "train" / "left" / name).write_bytes(b"no image")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load(root)
    pixels(dataset, "train")
    assert dataset.size("train") == 18


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    for name in ("notes.txt", "more.TXT", "phone.heic2", "README"):
        (root / "train" / "left" / name).write_bytes(b"no image")
    (root / "train" / "right" / "nested").mkdir()
    with pytest.warns(BnnedgeWarning, match="left out: ") as said:
        load(root)
    (warning,) = said
    for words in (
        f"{root / 'train'}: ",
        "2 .txt",
        "1 .heic2",
        "1 without an ending",
        "1 folder",
        "convert or remove it",
    ):
        assert words in str(warning.message)


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".bmp", ".webp", ".gif", ".tiff", ".ppm", ".jp2", ".tga"])
def test_whatever_pillow_decodes_is_read(suffix: str, tmp_path: Path) -> None:
    dataset = load(write_folder(tmp_path, suffix=suffix))
    assert dataset.size("train") == 18
    assert pixels(dataset).shape == (4, 3, SIZE, SIZE)


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "1", "CMYK", "YCbCr", "L"])
def test_colours_of_every_mode(mode: str, tmp_path: Path) -> None:
    red = Image.new("RGB", (SIZE, SIZE), (255, 0, 0)).convert(mode)
    white = Image.new("RGB", (SIZE, SIZE), (255, 255, 255)).convert(mode)
    root = write_folder(tmp_path, lambda i: white if i % 2 else red, suffix=".tif")
    Image.new("RGB", (SIZE, SIZE), (1, 2, 3)).save(root / "train" / "left" / "colour.png")
    found = pixels(load(root)).astype(int)
    expected = np.asarray(red.convert("RGB"))[0, 0]
    np.testing.assert_allclose(found[0, :, 0, 0], expected, atol=1)  # YCbCr rounds each of three numbers
    np.testing.assert_allclose(found[1], 255, atol=1)


@pytest.mark.parametrize(
    ("brightest", "white"),
    [(200, 255), (1000, 1023), (4095, 4095), (4000, 4095), (4096, 16383), (20_000, 65535), (65535, 65535)],
)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_deep_grey_keeps_its_brightness(brightest: int, white: int, suffix: str, tmp_path: Path) -> None:
    def make(i: int) -> Image.Image:
        ramp = np.linspace(0, brightest, SIZE * SIZE).reshape(SIZE, SIZE)
        return Image.fromarray((ramp * (i + 1) / 10).astype(np.uint16))

    root = write_folder(tmp_path, make, suffix)
    with pytest.warns(BnnedgeWarning, match=f"{white} counts as white, .* training images is {brightest} "):
        found = pixels(load(root))
    for i in range(2):
        values = np.asarray(make(i), np.float64)
        np.testing.assert_array_equal(found[i, 0], np.rint(values / white * 255))


@pytest.mark.parametrize(("scale", "white"), [(1.0, 1.0), (0.5, 1.0), (255.0, 255.0), (70_000.0, 2.0**32 - 1)])
def test_floating_point_images(scale: float, white: float, tmp_path: Path) -> None:
    ramp = np.linspace(-0.1 * scale, scale, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
    ramp[0, 0] = np.nan
    root = write_folder(tmp_path, lambda i: Image.fromarray(ramp), ".tif")
    with pytest.warns(BnnedgeWarning, match="counts as white"):
        found = pixels(load(root))
    expected = np.rint(np.clip(np.nan_to_num(ramp.astype(np.float64)) / white, 0, 1) * 255)
    np.testing.assert_array_equal(found[0, 0], expected)


def test_train_and_test_have_the_same_white(tmp_path: Path) -> None:
    """A dark test image stays dark, and one that is brighter than all training images is white."""
    root = write_folder(tmp_path, lambda i: Image.fromarray(np.full((SIZE, SIZE), 3000, np.uint16)))
    for i, value in enumerate((100, 60_000)):
        Image.fromarray(np.full((SIZE, SIZE), value, np.uint16)).save(root / "test" / "left" / f"{i}.png")
    with pytest.warns(BnnedgeWarning, match="4095 counts as white"):
        found = pixels(load(root))
    assert found[:, 0, 0, 0].tolist() == [6, 255, 187, 187]  # of 255: 100 and 3000 of 4095


def test_a_validation_folder_does_not_change_white(tmp_path: Path) -> None:
    """All splits have the white of the training images, which is measured once."""
    root = write_folder(tmp_path, lambda i: Image.fromarray(np.full((SIZE, SIZE), 3000, np.uint16)))
    for name in ("left", "right"):
        (root / "val" / name).mkdir(parents=True)
        Image.fromarray(np.full((SIZE, SIZE), 60_000, np.uint16)).save(root / "val" / name / "0.png")
    dataset = load(root)
    with pytest.warns(BnnedgeWarning, match="4095 counts as white") as said:
        found = [pixels(dataset, split)[0, 0, 0, 0] for split in ("train", "val", "test")]
    assert found == [187, 255, 187]  # of 255: 3000 of 4095
    assert len(said) == 1


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "bomb", "postscript"])
def test_a_damaged_image_is_named(damage: str, tmp_path: Path) -> None:
    root = write_folder(tmp_path, suffix=".jpg")
    path = root / "test" / "right" / "1.jpg"
    contents = {
        "cut": path.read_bytes()[:300],
        "text": b"no image",
        "empty": b"",
        "bomb": b"P6 40000 40000 255\n",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) (w) file closefile\n",
    }
    path.write_bytes(contents[damage])
    dataset = load(root)
    with pytest.raises(
        DataError, match=r"right/1\.jpg is damaged or no image \(.*\); replace or remove this file"
    ) as e:
        pixels(dataset)
    assert "\n" not in str(e.value)


def test_postscript_is_no_image(tmp_path: Path) -> None:
    """Pillow hands it to another program, which runs what it says."""
    assert not {".eps", ".ps", ".wmf", ".pdf"} & suffixes()
    assert {".jpg", ".png", ".webp", ".bmp", ".tif"} <= suffixes()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("kind", ["pipe", "broken link", "device"])
def test_what_is_no_file_is_named_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = write_folder(tmp_path) / "train" / "left" / "x.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere.png")
    with pytest.raises(DataError, match=r"x\.png: expected a file, found a pipe, a device or a broken link"):
        load(tmp_path)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected the folders train and val .* found no train; split the images so"):
        load(tmp_path)
    (tmp_path / "train" / "left").mkdir(parents=True)
    with pytest.raises(DataError, match="found no val or test; split the images so"):
        load(tmp_path)
    (tmp_path / "test" / "left").mkdir(parents=True)
    with pytest.raises(DataError, match="expected at least two classes in train, found only 'left'; add another"):
        load(tmp_path)
    (tmp_path / "train" / "right").mkdir()
    with pytest.raises(DataError, match="the same classes in train and test, found 'right' in one of them; add or rem"):
        load(tmp_path)
    (tmp_path / "test" / "right").mkdir()
    with pytest.raises(
        DataError, match=r"left: expected images such as \.jpg or \.png, found none; add some or remove"
    ):
        load(tmp_path)
    (tmp_path / "train" / "left" / "a.txt").write_text("no image")
    with pytest.raises(DataError, match=r"left: expected images such as \.jpg or \.png, found only \.txt; add some"):
        load(tmp_path)
    Image.new("L", (8, 8)).save(tmp_path / "train" / "left" / "a.png")
    with pytest.raises(DataError, match=r"right: expected images such as \.jpg or \.png, found none; add some"):
        load(tmp_path)  # what lies in the folder of another class is not said of this one


def test_without_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BNNEDGE_DATA", raising=False)
    with pytest.raises(DataError, match=r"folder needs its folder: give --data-root .* that holds train and val"):
        load_dataset("folder")


@pytest.mark.parametrize(
    "line", ["../../secret.JPEG\tn0", "images/v0.JPEG\tn0", "v9.JPEG\tn0", "v0.JPEG\tn9", "v0.JPEG"]
)
def test_lines_of_tiny_imagenet_that_name_other_files(line: str, tmp_path: Path) -> None:
    base = tmp_path / "tiny-imagenet-200"
    for name in ("n0", "n1"):
        (base / "train" / name / "images").mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (64, 64)).save(base / "train" / name / "images" / f"{i}.JPEG")
    (base / "val" / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(base / "val" / "images" / "v0.JPEG")
    table = base / "val" / "val_annotations.txt"
    table.write_text(f"v0.JPEG\tn1\t0\n{line}\t0\n")
    with pytest.raises(DataError, match=r"annotations\.txt, line 2: expected a file of the folder images and a class"):
        load_dataset("tiny_imagenet", data_root=tmp_path)
    for path, words in ((table, "val_annotations"), (base / "words.txt", "words")):
        table.write_text("v0.JPEG\tn1\t0\n")
        path.write_bytes(b"v0.JPEG\tn1\t\xff\n")
        with pytest.raises(DataError, match=rf"{words}\.txt: expected text in UTF-8"):
            load_dataset("tiny_imagenet", data_root=tmp_path)
