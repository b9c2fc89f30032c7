"""The readers of both CIFAR sets in both published forms, tested on small files that are written byte by byte."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from bnnedge.data.cifar10 import LAYOUT as CIFAR10
from bnnedge.data.cifar100 import LAYOUT as CIFAR100
from bnnedge.data.dataset import Dataset, load_dataset
from bnnedge.data.files.cifar import IMAGE_BYTES, CifarLayout, _read
from bnnedge.data.files.pickled_arrays import MOST_STEPS, read_pickled
from bnnedge.errors import DataError

LAYOUTS = [CIFAR10, CIFAR100]


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 wrote its str, the form in which the published files are."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

    def save_bytes(self: Any, value: bytes) -> None:
        short = len(value) < 256
        self.write(
            pickle.SHORT_BINSTRING + bytes([len(value)]) if short else pickle.BINSTRING + struct.pack("<i", len(value))
        )
        self.write(value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def python2_pickle(contents: Any) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(contents)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def samples(layout: CifarLayout, n: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    random = np.random.RandomState(seed)
    return random.randint(0, 256, (n, IMAGE_BYTES)).astype(np.uint8), (np.arange(n) % layout.num_classes).astype(
        np.uint8
    )


def files(layout: CifarLayout) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    per_file = 10 * layout.num_classes // len(layout.binary_train)
    names = [*layout.python_train, layout.python_test]
    return {name: samples(layout, per_file, seed) for seed, name in enumerate(names)}


def write_binary(layout: CifarLayout, root: Path) -> Path:
    folder = root / layout.binary_folder
    folder.mkdir(parents=True)
    binary_names = (*layout.binary_train, layout.binary_test)
    for name, (pixels, labels) in zip(binary_names, files(layout).values(), strict=True):
        coarse = [labels[:, None] // 5] * (layout.label_bytes - 1)
        (folder / name).write_bytes(np.hstack([*coarse, labels[:, None], pixels]).astype(np.uint8).tobytes())
    text = "".join(f"class {i}\n" for i in range(layout.num_classes))
    (folder / layout.binary_names).write_text(text + "\n")
    return folder


def write_python(layout: CifarLayout, root: Path) -> Path:
    folder = root / layout.python_folder
    folder.mkdir(parents=True)
    for name, (pixels, labels) in files(layout).items():
        contents = {
            b"batch_label": b"a batch",
            layout.label_key: labels.tolist(),
            b"data": pixels,
            b"filenames": [b"x.png"],
        }
        (folder / name).write_bytes(python2_pickle(contents))
    names = [f"class {i}".encode() for i in range(layout.num_classes)]
    (folder / layout.python_meta).write_bytes(python2_pickle({layout.names_key: names, b"num_vis": 3072}))
    return folder


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("write", [write_binary, write_python])
def test_every_pixel_and_label_is_read(layout: CifarLayout, write: Any, tmp_path: Path) -> None:
    write(layout, tmp_path)
    train, test, names = _read(layout, tmp_path)
    expected = list(files(layout).values())
    np.testing.assert_array_equal(train[0].reshape(-1, IMAGE_BYTES), np.concatenate([p for p, _ in expected[:-1]]))
    np.testing.assert_array_equal(train[1], np.concatenate([y for _, y in expected[:-1]]))
    np.testing.assert_array_equal(test[0].reshape(-1, IMAGE_BYTES), expected[-1][0])
    np.testing.assert_array_equal(test[1], expected[-1][1])
    assert names == tuple(f"class {i}" for i in range(layout.num_classes))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_both_forms_give_the_same_data_set(
    layout: CifarLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_binary(layout, tmp_path / "bin")
    write_python(layout, tmp_path / "py")
    monkeypatch.setenv("BNNEDGE_DATA", str(tmp_path / "py"))
    a, b = load_dataset(layout.name, data_root=tmp_path / "bin"), load_dataset(layout.name)
    assert a.info == b.info
    assert (a.info.preprocessing.input_shape, a.info.outputs) == ((3, 32, 32), layout.num_classes)
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(a.arrays(split)[0], b.arrays(split)[0])
    # 10 training images a class: one of them is held out.
    np.testing.assert_array_equal(np.bincount(a.arrays("val")[1]), np.ones(layout.num_classes))
    assert a.size("train") == 9 * layout.num_classes


def test_red_green_and_blue_stay_apart(tmp_path: Path) -> None:
    folder = write_binary(CIFAR10, tmp_path)
    red = bytes([3]) + bytes([255] * 1024) + bytes(2048)
    (folder / CIFAR10.binary_test).write_bytes(red)
    dataset: Dataset = load_dataset("cifar10", data_root=tmp_path)
    images, labels = dataset.arrays("test")
    record = dataset.info.preprocessing
    raw = images * np.reshape(record.std, (1, 3, 1, 1)) + np.reshape(record.mean, (1, 3, 1, 1))
    assert labels.tolist() == [3]
    np.testing.assert_allclose(raw[0].mean((1, 2)), [1, 0, 0], atol=1e-6)  # float32, values below 4: 2^-22 = 2.4e-7


def test_another_size(tmp_path: Path) -> None:
    write_binary(CIFAR10, tmp_path)
    assert load_dataset("cifar10", image_size=20, data_root=tmp_path).arrays("test")[0].shape[1:] == (3, 20, 20)


def one_line(error: BaseException) -> bool:
    return "\n" not in str(error)


def test_a_missing_folder_says_what_is_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BNNEDGE_DATA", raising=False)
    with pytest.raises(DataError, match="--data-root"):
        load_dataset("cifar10")
    with pytest.raises(DataError, match="cifar-100-binary or cifar-100-python") as caught:
        load_dataset("cifar100", data_root=tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin", "batches.meta.txt"])
def test_a_missing_binary_file_is_named(name: str, tmp_path: Path) -> None:
    (write_binary(CIFAR10, tmp_path) / name).unlink()
    with pytest.raises(DataError, match=name):
        load_dataset("cifar10", data_root=tmp_path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (bytes(3073 + 100), "multiple of 3073"),
        (bytes([10]) + bytes(3072), "labels from 0 to 9"),
    ],
)
def test_a_damaged_binary_file_is_refused(data: bytes, words: str, tmp_path: Path) -> None:
    (write_binary(CIFAR10, tmp_path) / "data_batch_2.bin").write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        load_dataset("cifar10", data_root=tmp_path)
    assert "data_batch_2.bin" in str(caught.value)


class Attack:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("this code must not run",)


def nested(depth: int) -> Any:
    """A list that holds the same list twice, and so on: a few bytes of a file, of which nobody can print the value."""
    value: Any = [0]
    for _ in range(depth):
        value = [value, value]
    return value


def damaged_pickles() -> list[tuple[bytes, str]]:
    pixels, labels = samples(CIFAR10, 4, 0)
    good = {b"data": pixels, b"labels": labels.tolist()}
    return [
        (pickle.dumps(Attack(), protocol=2), "asks for"),
        (python2_pickle(good)[:200], "not a file of the Python version"),
        (b"garbage", "not a file of the Python version"),
        (python2_pickle([1]), "expected a dictionary"),
        (python2_pickle({b"data": pixels}), "a list under 'labels'"),
        (python2_pickle({**good, b"labels": [1]}), "shape"),
        (python2_pickle({**good, b"data": pixels.astype(np.int16)}), "uint8"),
        (python2_pickle({**good, b"labels": [0, 1, 2, 10]}), "numbers from 0 to 9 as labels, found 10;"),
        (python2_pickle({**good, b"labels": [0, 1, 2, -1]}), "numbers from 0 to 9 as labels, found -1;"),
        (python2_pickle({**good, b"labels": [[0], [1], [2], [3, 4]]}), "as labels, found a list;"),
        (python2_pickle({**good, b"labels": [[], [], [], [1]]}), "as labels, found a list;"),
        (python2_pickle({**good, b"labels": [0, 1, 2, 3.5]}), "as labels, found a float;"),
        (python2_pickle({**good, b"labels": [0.0, 1, 2, 3]}), "as labels, found a float;"),
        (python2_pickle({**good, b"labels": [None] * 4}), "as labels, found a NoneType;"),
        (python2_pickle({**good, b"labels": [False] * 4}), "as labels, found a bool;"),
        (python2_pickle({**good, b"labels": [10**30] * 4}), "as labels, found a int;"),
        (python2_pickle({**good, b"labels": [nested(40)] * 4}), "as labels, found a list;"),
        (python2_pickle({**good, 1: 2}), "a dictionary whose keys are no text"),
        (pickle.dumps({**good, b"data": pixels.astype(object)}), "elements are no numbers"),
        (b"\x80\x02]r\xff\xff\xff\xff.", "expected a dictionary"),  # a place in the memo, of which none is made
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "not a file of the Python version"),  # 2^63 bytes
    ]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(protocol: int) -> None:
    """As Python 3 writes them; those of Python 2 are what the archives hold."""
    values = {
        b"data": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big-endian": np.arange(3, dtype=">i4"),
        b"labels": [0, 255, 70_000, -1, 2**40, 0.5, None, True],
        "texts": ("", "a", b"\xff\x00", "\u20ac" * 300, b"x" * 70_000),
        "shared": [labels := [1], labels, {}],
    }
    found = read_pickled(pickle.dumps(values, protocol))
    assert list(found) == list(values)
    for key, expected in values.items():
        if isinstance(expected, np.ndarray):
            assert found[key].dtype == expected.dtype
            np.testing.assert_array_equal(found[key], expected)
        else:
            assert found[key] == expected


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([nested(40)] * 10, "text, found a list"),
        ([b"\xff"] * 10, "UTF-8"),
        ([1] * 10, "text, found a int"),
        (["a"], "10 cl"),
    ],
)
def test_class_names_that_are_no_text(names: list[Any], words: str, tmp_path: Path) -> None:
    (write_python(CIFAR10, tmp_path) / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}))
    with pytest.raises(DataError, match=words) as caught:
        load_dataset("cifar10", data_root=tmp_path)
    assert "batches.meta" in str(caught.value) and one_line(caught.value)


@pytest.mark.parametrize(("data", "words"), damaged_pickles())
def test_a_damaged_or_hostile_pickle_is_refused(
    data: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (write_python(CIFAR10, tmp_path) / "data_batch_2").write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        load_dataset("cifar10", data_root=tmp_path)
    assert "data_batch_2" in str(caught.value)
    assert one_line(caught.value)
    assert capsys.readouterr().out == ""


PROTO = b"\x80\x02"
TWICE = b"q\x00h\x00\x86"
"""The steps that turn what is on the stack into a tuple that holds it twice."""


@pytest.mark.parametrize(
    ("program", "words"),
    [
        pytest.param(b"}K\x01" + TWICE * 60 + b"K\x01s.", "keys are no text", id="the hash of a key takes for ever"),
        pytest.param(b"}K\x01" + b"\x85" * 10**6 + b"K\x01s.", "keys are no text", id="a key too deep for the stack"),
        pytest.param(b"]" * (MOST_STEPS + 2), "at most 1,048,576 steps", id="more lists than fit into memory"),
        pytest.param(
            b"](X\x06\x00\x00\x00" + b"abcdefq\x00h\x00X\x06\x00\x00\x00latin1\x86q\x01"
            + b"c_codecs\nencode\nq\x02" + b"h\x02h\x01R" * 100 + b"e.",
            "more bytes than the file has",
            id="the same text again and again",
        ),
        pytest.param(
            b"cnumpy\ndtype\nX\x00\x00\x01\x00" + b"u" * 2**16 + b"K\x00K\x01\x87R.", "no numbers", id="a long type"
        ),
        pytest.param(
            b"cnumpy\nndarray\nX\x00\x00\x01\x00" + b"u" * 2**16 + b"R.", "an array's parts", id="text as arguments"
        ),
        pytest.param(b"]" + TWICE * 60 + b"h\x00\x93.", "whose name is no text", id="a name that is a tuple"),
    ],
)  # fmt: skip
def test_programs_that_take_all_memory_or_never_end(program: bytes, words: str) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match=words):
        read_pickled(PROTO + program)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**29


@pytest.mark.parametrize(
    ("write", "name", "most"),
    [
        (write_binary, "data_batch_2.bin", 2**28 // 5),
        (write_binary, "batches.meta.txt", 2**16),
        (write_python, "test_batch", 2**28 // 5),
        (write_python, "batches.meta", 2**16),
    ],
)
def test_files_that_are_too_large_are_not_read(write: Any, name: str, most: int, tmp_path: Path) -> None:
    with (write(CIFAR10, tmp_path) / name).open("r+b") as file:
        file.truncate(most + 1)
    with pytest.raises(DataError, match=rf"{name}: expected at most {most:,} bytes, found more"):
        load_dataset("cifar10", data_root=tmp_path)
