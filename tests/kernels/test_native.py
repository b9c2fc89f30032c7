"""The C interface itself: buffers, messages, selection. Results are compared in test_bconv2d.py."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnnedge.errors import ConfigError, MissingDependencyError
from bnnedge.kernels import native
from bnnedge.kernels.layout import pack
from bnnedge.kernels.native import library

POISON = np.int32(-0x21524111)


def params(**changes: int) -> native.BConv2dParams:
    """A 3x3 convolution of 1x4x4x64 to 1x4x4x2 with padding 1."""
    fields = dict.fromkeys((field[0] for field in native.BConv2dParams._fields_), 1)
    fields |= {"in_height": 4, "in_width": 4, "channels": 64, "out_channels": 2, "kernel_height": 3, "kernel_width": 3}
    return native.BConv2dParams(**{**fields, "pad_value": 0, **changes})


def buffers() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    return np.zeros((1, 4, 4, 2), np.uint32), np.zeros((2, 3, 3, 2), np.uint32), np.full(32, POISON, np.int32)


def test_the_library_is_built() -> None:
    assert native.available()
    assert native.kernel_names()[-2:] == ["portable", "reference"]


def test_a_stem_needs_no_more_than_the_convolutions_do() -> None:
    assert [native.stem_kernel_name(name) for name in ("portable", "reference")] == ["portable", "reference"]
    if "popcnt" in native.kernel_names():  # popcounts are no help to a stem
        assert native.stem_kernel_name("popcnt") == "portable"
    with pytest.raises(ConfigError, match=r"kernel warp does not run on this CPU; known: .*, portable, reference"):
        native.stem_kernel_name("warp")


@pytest.mark.parametrize("kernel", native.kernel_names() if native.available() else [])
@pytest.mark.parametrize("channels", [1, 33, 64])
def test_writes_every_output_and_nothing_else(kernel: str, channels: int) -> None:
    """Inputs lie between words of ones and the output between poison, so over-reads and over-writes show."""
    rng = np.random.default_rng(channels)
    words = pack(rng.choice([-1, 1], (1, 5, 4, channels)))
    filters = pack(rng.choice([-1, 1], (3, 3, 3, channels)))
    expected = native.bconv2d(words, filters, channels, padding=(1, 1), pad_value=1)

    def surrounded(array: NDArray[Any]) -> NDArray[Any]:
        room = np.full(array.size + 16, 0xFFFFFFFF, np.uint32)
        inner = room[8:-8].reshape(array.shape)
        inner[:] = array
        return inner

    room = np.full(expected.size + 16, POISON, np.int32)
    sums = room[8:-8].reshape(expected.shape)
    geometry = params(in_height=5, channels=channels, out_channels=3, pad_value=1)
    native.call(native.load_library(), geometry, surrounded(words), surrounded(filters), sums, kernel)
    assert np.array_equal(sums, expected)
    assert np.all(room[:8] == POISON) and np.all(room[-8:] == POISON)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch must be in"),
        ({"in_width": -4}, "in_width must be in"),
        ({"stride_height": 0}, "stride_height must be in"),
        ({"dilation_width": 0}, "dilation_width must be in"),
        ({"pad_top": -1}, "pad_top must be in"),
        ({"pad_right": 2**62}, "pad_right must be in"),
        ({"groups": 0}, "groups must be in"),
        ({"pad_value": 2}, "pad_value must be 0 or 1, got 2"),
        ({"groups": 3}, "64 channels do not divide into 3 groups"),
        ({"groups": 4, "out_channels": 4}, "multiple of 32, got 16"),
        ({"groups": 2, "out_channels": 3}, "3 output channels do not divide into 2 groups"),
        ({"dilation_height": 9}, "does not fit"),
        ({"dilation_height": 2**31 - 1}, "does not fit"),
        ({"kernel_height": 2**31 - 1, "kernel_width": 2**31 - 1}, "more products than int32"),
        ({"kernel_height": 2**15, "kernel_width": 2**10}, "more products than int32"),
        ({"batch": 2**30, "in_height": 2**20}, "too large"),
        ({"batch": 2**30, "in_height": 2**30, "in_width": 2**4}, "too large"),  # 2^65 words: 0 in 64 bits
        ({"batch": 2}, "input must have 64 elements, got 32"),
        ({"out_channels": 3}, "filter must have 54 elements, got 36"),
        ({"pad_bottom": 0}, "sums must have 24 elements, got 32"),
    ],
)
def test_bad_parameters_leave_the_output_alone(changes: dict[str, int], message: str) -> None:
    words, filters, sums = buffers()
    with pytest.raises(ConfigError, match=message):
        native.call(native.load_library(), params(**changes), words, filters, sums)
    assert np.all(sums == POISON)


def test_asymmetric_padding() -> None:
    """TensorFlow's SAME at stride 2: nothing before, one after. All +1, so each sum counts the inside taps."""
    words, filters, sums = buffers()
    geometry = params(stride_height=2, stride_width=2, pad_top=0, pad_left=0)
    native.call(native.load_library(), geometry, words, filters, sums[:8])
    assert (sums[:8].reshape(2, 2, 2)[..., 0] // 64).tolist() == [[9, 6], [6, 4]]
    assert np.all(sums[8:] == POISON)


def test_null_pointers_and_short_messages() -> None:
    library, room = native.load_library(), ctypes.create_string_buffer(b"x" * 15)
    assert library.bnnedge_bconv2d(None, None, None, 0, None, 0, None, 0, room, 8) == 1
    assert room.raw == b"params,\0xxxxxxx\0"
    assert library.bnnedge_bconv2d(None, None, None, 0, None, 0, None, 0, None, 0) == 1


def test_kernel_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    words, filters, sums = buffers()
    monkeypatch.setenv("BNNEDGE_KERNEL", "portable")
    native.call(native.load_library(), params(), words, filters, sums)
    assert not np.any(sums == POISON)
    monkeypatch.setenv("BNNEDGE_KERNEL", "fastest")
    with pytest.raises(ConfigError, match=r"BNNEDGE_KERNEL=fastest does not run on this CPU; known: .*portable"):
        native.call(native.load_library(), params(), words, filters, sums)
    native.call(native.load_library(), params(), words, filters, sums, "reference")  # an argument beats the variable
    with pytest.raises(ConfigError, match="kernel slowest does not run"):
        native.call(native.load_library(), params(), words, filters, sums, "slowest")


@pytest.fixture
def uncached() -> Iterator[None]:
    native.load_library.cache_clear()
    yield
    native.load_library.cache_clear()


@pytest.mark.usefixtures("uncached")
def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LIBRARY_NAME", "not_there.so")
    assert not native.available()
    words, filters, _ = buffers()
    with pytest.raises(MissingDependencyError, match=r"install a C\+\+17 compiler and reinstall"):
        native.bconv2d(words, filters, 64)


@pytest.mark.usefixtures("uncached")
def test_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "ABI_VERSION", 999)
    with pytest.raises(MissingDependencyError, match="expected \\(999, 1\\)"):
        native.load_library()
