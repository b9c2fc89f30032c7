from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bnnedge.errors import ConfigError
from bnnedge.kernels.layout import has_spare_bits_set, pack, unpack
from bnnedge.kernels.reference import bconv2d, bmaxpool2d, threshold


def test_one_pixel_by_hand() -> None:
    """33 channels; pixel and filter differ in channels 1 and 32: 33 - 2 * 2."""
    pixel, weight = np.ones(33), np.ones(33)
    pixel[1] = weight[32] = -1
    sums = bconv2d(pack(pixel[None, None, None]), pack(weight[None, None, None]), 33)
    assert sums.dtype == np.int32
    assert sums.tolist() == [[[[29]]]]


def test_padding_by_hand() -> None:
    """One pixel -1, 3x3 filter of ones: 8 outside taps add 0, or +1 each."""
    pixel, weight = pack(np.full((1, 1, 1, 1), -1)), pack(np.ones((1, 3, 3, 1)))
    assert bconv2d(pixel, weight, 1, padding=(1, 1), pad_value=0).item() == -1
    assert bconv2d(pixel, weight, 1, padding=(1, 1), pad_value=1).item() == 7


@pytest.mark.parametrize("channels", [1, 31, 33, 64])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1)), ((3, 2), (1, 2), (1, 0)), ((3, 3), (1, 1), (0, 0))],
)
def test_maxpool_equals_torch(
    channels: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    rng = np.random.default_rng(channels)
    signs = np.where(rng.random((2, 6, 7, channels)) < 0.15, 1.0, -1.0)
    words = bmaxpool2d(pack(signs), kernel=kernel, stride=stride, padding=padding)
    expected = F.max_pool2d(torch.from_numpy(signs).permute(0, 3, 1, 2), kernel, stride, padding).permute(0, 2, 3, 1)
    assert -1 in expected and 1 in expected
    assert np.array_equal(unpack(words, channels), expected.numpy())
    assert not has_spare_bits_set(words, channels)


def test_maxpool_padding_up_to_the_kernel() -> None:
    words = pack(np.full((1, 1, 1, 1), -1))
    assert bmaxpool2d(words, kernel=(3, 3), stride=(1, 1), padding=(2, 2)).tolist() == [[[[1]] * 3] * 3]
    with pytest.raises(ConfigError, match="without a pixel"):
        bmaxpool2d(words, kernel=(3, 3), stride=(1, 1), padding=(3, 2))
    with pytest.raises(ConfigError, match="does not fit"):
        bmaxpool2d(words, kernel=(3, 3), stride=(1, 1))


@pytest.mark.parametrize("channels", [1, 32, 33])
def test_threshold_is_strictly_below(channels: int) -> None:
    rng = np.random.default_rng(channels)
    sums = rng.integers(-5, 6, (2, 3, 4, channels), dtype=np.int32)
    limits = rng.integers(-5, 6, channels, dtype=np.int32)
    words = threshold(sums, limits)
    assert np.array_equal(unpack(words, channels), np.where(sums >= limits, 1, -1))
    assert not has_spare_bits_set(words, channels)


def test_threshold_at_the_extremes() -> None:
    info = np.iinfo(np.int32)
    sums = np.array([[-1000, 1000], [info.min, info.max]], np.int32)
    limits = np.array([info.min, info.max], np.int32)
    assert unpack(threshold(sums, limits), 2).tolist() == [[1, -1], [1, 1]]


def test_threshold_refuses() -> None:
    with pytest.raises(ConfigError, match="one threshold per channel"):
        threshold(np.zeros((2, 3), np.int32), np.zeros(2, np.int32))
    with pytest.raises(ConfigError, match="signed integers"):
        threshold(np.zeros((2, 3)), np.zeros(3, np.int32))
