from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bnnedge.binarization.sign import sign
from bnnedge.errors import ConfigError
from bnnedge.kernels.layout import has_spare_bits_set, pack, pack_filter, unpack, words_for

CHANNELS = [1, 3, 31, 32, 33, 63, 64, 65, 129]


def test_vector_of_the_contract() -> None:
    values = np.array([1, -1, -1, 1, *[1] * 28, -1])
    assert pack(values).tolist() == [6, 1]
    assert pack(values).dtype == np.uint32


@pytest.mark.parametrize("channels", CHANNELS)
def test_bit_of_each_channel(channels: int) -> None:
    for channel in range(channels):
        values = np.ones(channels, np.int8)
        values[channel] = -1
        expected = [0] * words_for(channels)
        expected[channel // 32] = 1 << channel % 32
        assert pack(values).tolist() == expected


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.float16, np.float32, np.float64])
def test_round_trip(channels: int, dtype: type) -> None:
    signs: NDArray[Any] = np.random.default_rng(channels).choice([-1, 1], (2, 3, channels)).astype(dtype)
    words = pack(signs)
    assert words.shape == (2, 3, -(-channels // 32))
    assert not has_spare_bits_set(words, channels)
    back = unpack(words, channels)
    assert back.dtype == np.int8
    assert np.array_equal(back, signs)


def test_words_are_little_endian_in_memory() -> None:
    values = np.ones(32)
    values[0] = -1
    assert pack(values).astype("<u4").tobytes() == b"\x01\x00\x00\x00"


def test_sign_of_special_values_is_that_of_torch() -> None:
    values = np.array([0.0, -0.0, np.nan, -np.nan, 1e-45, -1e-45, np.inf, -np.inf], np.float32)
    expected = [1, 1, 1, 1, 1, -1, 1, -1]
    assert unpack(pack(values), 8).tolist() == expected
    assert sign(torch.from_numpy(values)).tolist() == expected


def test_unsigned_values_are_all_plus_one() -> None:
    assert pack(np.array([0, 1, 255], np.uint8)).tolist() == [0]


def test_non_contiguous_values_and_words() -> None:
    signs = np.random.default_rng(0).choice([-1, 1], (65, 4, 5))
    moved = signs.transpose(1, 2, 0)
    words = pack(moved)
    assert np.array_equal(words, pack(np.ascontiguousarray(moved)))
    assert np.array_equal(unpack(words[::2, ::-1], 65), moved[::2, ::-1])


def test_unpack_ignores_spare_bits_and_takes_int32() -> None:
    words = pack(np.full((2, 33), -1))
    words[..., -1] |= np.uint32(0xFFFFFFFE)
    assert has_spare_bits_set(words, 33)
    assert np.array_equal(unpack(words.view(np.int32), 33), np.full((2, 33), -1))


@pytest.mark.parametrize("channels", CHANNELS)
def test_first_spare_bit_is_noticed(channels: int) -> None:
    words = np.zeros((2, words_for(channels)), np.uint32)
    if channels % 32:
        words[1, -1] = 1 << channels % 32
    else:
        words[1, -1] = 1 << 31
    assert has_spare_bits_set(words, channels) == (channels % 32 != 0)


@pytest.mark.parametrize("values", [np.array([True, False]), np.array([1j]), np.array(1.0), np.zeros((3, 0))], ids=str)
def test_pack_refuses(values: NDArray[Any]) -> None:
    with pytest.raises(ConfigError, match="pack needs"):
        pack(values)


@pytest.mark.parametrize(
    ("words", "channels"),
    [
        (np.zeros(2, np.uint32), 32),
        (np.zeros(1, np.uint32), 33),
        (np.zeros(1, np.uint32), 0),
        (np.zeros(1, np.uint64), 32),
        (np.zeros(1, np.float32), 32),
        (np.array(0, np.uint32), 1),
    ],
)
def test_unpack_refuses(words: NDArray[Any], channels: int) -> None:
    with pytest.raises(ConfigError):
        unpack(words, channels)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_filter_is_packed_over_its_input_channels(channels: int, dtype: type) -> None:
    weight: NDArray[Any] = np.random.default_rng(channels).choice([-1, 1], (3, channels, 2, 5)).astype(dtype)
    words = pack_filter(weight)
    assert words.dtype == np.uint32
    assert words.shape == (3, 2, 5, -(-channels // 32))
    assert words.flags.c_contiguous
    assert not has_spare_bits_set(words, channels)
    for place in np.ndindex(weight.shape):
        out, channel, y, x = place
        assert (words[out, y, x, channel // 32] >> np.uint32(channel % 32)) & 1 == (weight[place] < 0)


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), (2, "2"), (-3, "-3")])
def test_filter_refuses_another_value_and_names_it(value: int, shown: str) -> None:
    weight = np.ones((2, 33, 1, 1), np.int8)
    weight[1, 32, 0, 0] = value
    with pytest.raises(ValueError, match=rf"-1 and \+1 alone, got {shown};"):
        pack_filter(weight)


@pytest.mark.parametrize("value", [np.nan, 0.5, -0.0, np.inf])
def test_filter_refuses_a_float_that_is_no_sign(value: float) -> None:
    weight = np.full((1, 1, 1, 2), -1.0)
    weight[0, 0, 0, 1] = value
    with pytest.raises(ValueError, match=f"got {value};"):
        pack_filter(weight)


def test_filter_refuses_another_number_of_axes() -> None:
    with pytest.raises(ValueError, match=r"\[O, I/groups, kh, kw\], got shape \(4, 32\)"):
        pack_filter(np.ones((4, 32), np.int8))
