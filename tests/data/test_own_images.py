"""Folders of one's own images: what counts as an image and a class, its brightness, and what is said of the rest."""

from __future__ import annotations

import os
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bnnedge.cli import main
from bnnedge.data.dataset import Dataset, Split, load_dataset
from bnnedge.data.images import decode
from bnnedge.data.images.at_once import AtOnce
from bnnedge.data.images.formats import suffixes
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
    for name in ("._0.png", ".0.png.swp", "0.png~", "~$0.png", "0.png.swp", "Thumbs.db", "desktop.ini", ".DS_Store"):
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


def deep(value: int) -> Image.Image:
    return Image.fromarray(np.full((SIZE, SIZE), value, np.uint16))


def test_all_splits_have_the_same_white(tmp_path: Path) -> None:
    """A dark image stays dark, and one that is brighter than all training images is white, which is said once."""
    root = write_folder(tmp_path, lambda i: deep(3000))
    for split in ("val", "test"):
        for name in ("left", "right"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i, value in enumerate((100, 60_000)):
                deep(value).save(root / split / name / f"{i}.png")
    dataset = load(root)
    with pytest.warns(BnnedgeWarning) as said:
        shades = [pixels(dataset, split)[:, 0, 0, 0].tolist() for split in ("val", "test")]
    assert shades == [[6, 255, 6, 255]] * 2  # of 255: 100 of 4095
    first, second = (str(warning.message) for warning in said)
    assert "4095 counts as white, since the brightest pixel of the training images is 3000" in first
    assert "1.png: its brightest pixel is 60000, and 4095 counts as white" in second
    assert pixels(dataset, "train")[0, 0, 0, 0] == 187


def test_deep_images_among_others_that_are_not(tmp_path: Path) -> None:
    """Nothing says what is white if no training image is deep. The ending of a name says nothing of the depth."""
    root = write_folder(tmp_path, lambda i: Image.new("L", (SIZE, SIZE), 10 * i))
    deep(3000).save(root / "test" / "left" / "0.png")
    with pytest.raises(DataError, match=r"left/0\.png is greyscale of more than 8 bits, as no training image is, so"):
        pixels(load(root))
    deep(2000).save(root / "train" / "left" / "0.jpg", format="PNG")
    with pytest.warns(BnnedgeWarning, match=r"4095 counts as white, .* is 2000 .*0\.jpg"):
        assert pixels(load(root))[0, 0, 0, 0] == 187


def test_a_damaged_image_beside_deep_ones_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path, lambda i: deep(100 * i))
    path = root / "train" / "right" / "7.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"right/7\.png is damaged"):
        pixels(load(root))


def test_large_deep_images_are_computed_in_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnnedge.data.images.white_level._BAND_PIXELS", 5 * SIZE)
    values = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) + 3000
    root = write_folder(tmp_path, lambda i: Image.fromarray(values))
    with pytest.warns(BnnedgeWarning, match="4095 counts as white"):
        np.testing.assert_array_equal(pixels(load(root))[0, 0], np.rint(values / 4095 * 255))


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_both_byte_orders(byte_order: str, tmp_path: Path) -> None:
    """A TIFF file of one strip, written byte by byte."""
    values = (np.arange(SIZE * SIZE).reshape(SIZE, SIZE) * 7).astype(f"{byte_order}u2")
    tags: tuple[tuple[int, int], ...] = (
        (256, SIZE),
        (257, SIZE),
        (258, 16),
        (259, 1),
        (262, 1),
        (273, 122),
        (277, 1),
        (278, SIZE),
    )
    tags += ((279, values.nbytes),)
    entries = b"".join(struct.pack(f"{byte_order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    header = struct.pack(f"{byte_order}2sHIH", b"II" if byte_order == "<" else b"MM", 42, 8, len(tags))
    root = write_folder(tmp_path, lambda i: deep(0), ".tif")
    data = header + entries + bytes(4)
    assert len(data) == 122
    for path in root.rglob("*.tif"):
        path.write_bytes(data + values.tobytes())
    with pytest.warns(BnnedgeWarning, match="4095 counts as white, .* is 4025 "):
        np.testing.assert_array_equal(pixels(load(root))[0, 0], np.rint(values.astype(float) / 4095 * 255))


def test_colours_of_16_bits_are_said(tmp_path: Path) -> None:
    """Pillow keeps their upper 8 bits; a camera of 12 bits would leave pictures that are all but black."""
    root = write_folder(tmp_path)
    (root / "test" / "left" / "1.png").write_bytes(png_of_16_bits((SIZE, SIZE), 0x1234))
    dataset = load(root)
    with pytest.warns(BnnedgeWarning, match=r"left/1\.png: of colours of 16 bits the upper 8 are read") as said:
        assert (pixels(dataset)[1] == 0x12).all()
        pixels(dataset)
    assert len(said) == 1


def png_of_16_bits(size: tuple[int, int], value: int) -> bytes:
    """A PNG file whose red, green and blue are ``value``."""
    width, height = size
    rows = (b"\0" + struct.pack(">H", value) * 3 * width) * height
    parts = (b"IHDR", struct.pack(">IIBBBBB", *size, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_are_turned_upright(channels: int, orientation: int, suffix: str, tmp_path: Path) -> None:
    """The EXIF standard's own words: where row 0 and column 0 of the stored image lie in what one sees."""
    row_0, column_0 = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    stored = np.full((SIZE, 2 * SIZE), 128, np.uint8)
    stored[: SIZE // 3] = 0  # the rows from row 0 on are black
    image = Image.fromarray(stored).convert("L" if channels == 1 else "RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    root = write_folder(tmp_path, lambda i: Image.new("L" if channels == 1 else "RGB", (SIZE, SIZE)))
    image.save(root / "test" / "left" / f"2{suffix}", exif=exif)
    found = pixels(load(root))[2, 0]
    edges = {"top": found[:3], "bottom": found[-3:], "left": found[:, :3], "right": found[:, -3:]}
    darkest = min(edges, key=lambda edge: float(edges[edge].mean()))
    assert darkest == row_0
    stored[:] = 128
    stored[:, : 2 * SIZE // 3] = 0  # the columns from column 0 on
    Image.fromarray(stored).convert(image.mode).save(root / "test" / "left" / f"2{suffix}", exif=exif)
    found = pixels(load(root))[2, 0]
    edges = {"top": found[:3], "bottom": found[-3:], "left": found[:, :3], "right": found[:, -3:]}
    assert min(edges, key=lambda edge: float(edges[edge].mean())) == column_0


def test_damaged_notes_of_a_camera_do_not_damage_the_image(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    grey = Image.new("RGB", (SIZE, SIZE), (90, 90, 90))
    grey.save(root / "test" / "left" / "1.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12\xff\xff")
    np.testing.assert_array_equal(pixels(load(root))[1], 90)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "postscript", "unmarked"])
def test_a_damaged_image_is_named(damage: str, tmp_path: Path) -> None:
    root = write_folder(tmp_path, suffix=".jpg")
    path = root / "test" / "right" / "1.jpg"
    contents = {
        "cut": path.read_bytes()[:300],
        "text": b"no image",
        "empty": b"",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) (w) file closefile\n",
        # What Pillow takes for a picture of the format TGA, whose files begin with no mark.
        "unmarked": bytes([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, SIZE, 0, SIZE, 0, 24, 0]) + bytes(3 * SIZE * SIZE),
    }
    path.write_bytes(contents[damage])
    dataset = load(root)
    with pytest.raises(
        DataError, match=r"right/1\.jpg is damaged or no image \(.*\); replace or remove this file"
    ) as e:
        pixels(dataset)
    assert "\n" not in str(e.value)


def test_an_image_of_too_many_pixels_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    (root / "test" / "right" / "1.ppm").write_bytes(b"P6 40000 40000 255\n")
    with pytest.raises(DataError, match=r"right/1\.ppm has more pixels than an image should \(.*\); make it smaller"):
        pixels(load(root))


def test_an_image_of_more_than_the_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_LARGE", 4 * SIZE * SIZE)
    monkeypatch.setattr("bnnedge.memory.free_bytes", lambda: 10_000)
    root = write_folder(tmp_path)
    Image.new("RGB", (SIZE, 5 * SIZE)).save(root / "test" / "right" / "1.png")
    with pytest.raises(DataError, match=r"right/1\.png, an image of 24x120 pixels, needs at least .* of memory, and"):
        pixels(load(root))


def test_large_images_are_decoded_one_after_the_other() -> None:
    """Shares never exceed the limit together, and one that does by itself has it alone."""
    at_once, lock = AtOnce(10), threading.Lock()
    held, most, alone = [], 0, True

    def work(amount: int) -> None:
        nonlocal most, alone
        with at_once.share(amount):
            with lock:
                held.append(amount)
                most = max(most, sum(held) if amount <= 10 else 0)
                alone = alone and (amount <= 10 or held == [amount])
            time.sleep(0.002)
            with lock:
                held.remove(amount)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, [4, 3, 2, 11, 5, 4, 4, 7] * 5))
    assert most <= 10 and alone


def test_the_share_of_an_image_is_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []

    class Recorded:
        def share(self, amount: int) -> AbstractContextManager[None]:
            shares.append(amount)
            return nullcontext()

    monkeypatch.setattr(decode, "_AT_ONCE", Recorded())
    root = write_folder(tmp_path)
    Image.new("RGB", (SIZE, 3 * SIZE)).save(root / "test" / "right" / "1.png")
    pixels(load(root))
    assert sorted(shares) == [SIZE * SIZE] * 3 + [3 * SIZE * SIZE]


def test_failures_give_their_share_back() -> None:
    at_once = AtOnce(10)
    for _ in range(3):
        with pytest.raises(ValueError, match="x"), at_once.share(9):
            raise ValueError("x")


def test_postscript_is_no_image(tmp_path: Path) -> None:
    """Pillow hands it to another program, which runs what it says."""
    assert not {".eps", ".ps", ".wmf", ".pdf"} & suffixes()
    assert {".jpg", ".png", ".webp", ".bmp", ".tif", ".mpo"} <= suffixes()


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


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "train" / "left" / "x.png").symlink_to("x.png")
    with pytest.raises(DataError, match=r"left/x\.png cannot be read: .*; remove it"):
        load(tmp_path)


def test_images_beside_the_classes_are_counted(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    for name in ("a.png", "b.JPG", "._c.png", "README.txt"):
        (root / "train" / name).write_bytes(b"")
    with pytest.warns(BnnedgeWarning, match="train: images that are in no folder of a class are left out: 2; move or"):
        assert load(root).size("train") == 18


def test_a_class_whose_name_is_no_text(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    for split in ("train", "test"):
        try:
            os.rename(os.fsencode(root / split / "left"), os.fsencode(root / split) + b"/\xff")
        except OSError:
            pytest.skip("names of files are UTF-8 here")
    with pytest.raises(DataError, match=r"train: expected names of classes in UTF-8, found '\\udcff'; rename this"):
        load(root)


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
    for name in ("v0", "v1"):
        Image.new("RGB", (64, 64)).save(base / "val" / "images" / f"{name}.JPEG")
    table = base / "val" / "val_annotations.txt"
    table.write_text(f"v1.JPEG\tn1\t0\n{line}\t0\n")
    with pytest.raises(DataError, match=r"annotations\.txt, line 2: expected a file of the folder images that no"):
        load_dataset("tiny_imagenet", data_root=tmp_path)
    for path, words in ((table, "val_annotations"), (base / "words.txt", "words")):
        table.write_text("v0.JPEG\tn1\t0\nv1.JPEG\tn0\t0\n")
        path.write_bytes(b"v0.JPEG\tn1\t\xff\n")
        with pytest.raises(DataError, match=rf"{words}\.txt: expected text in UTF-8"):
            load_dataset("tiny_imagenet", data_root=tmp_path)
