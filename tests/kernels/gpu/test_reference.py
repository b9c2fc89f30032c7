"""The torch reference of the GPU kernels against the NumPy reference that every other kernel is compared with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bnnedge.kernels import layout
from bnnedge.kernels import reference as numpy_reference
from bnnedge.kernels.geometry import BConv2dGeometry
from bnnedge.kernels.gpu import reference


@pytest.mark.parametrize("channels", [1, 31, 32, 33, 64, 65])
def test_sign_pack(channels: int) -> None:
    x = torch.randn(2, 3, channels)
    x[0, 0, 0], x[1, 2, -1] = math.nan, -0.0
    packed = reference.sign_pack(x, 0.5)
    words = layout.pack(x.numpy())
    assert packed.mask is not None
    assert np.array_equal(packed.signs.numpy().view(np.uint32), words)
    assert np.array_equal(packed.mask.numpy().view(np.uint32), layout.pack(np.where(x.abs() <= 0.5, -1, 1)))
    assert torch.equal(packed.counts, (x < 0).sum(-1).int())
    signs = reference.unpack_signs(packed.signs, channels, torch.float32)
    assert np.array_equal(signs.numpy(), layout.unpack(words, channels))
    assert not layout.has_spare_bits_set(packed.mask.numpy().view(np.uint32), channels)


@pytest.mark.parametrize("pad_value", [0, 1])
@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation"),
    [
        ((4, 6), (3, 3), (2, 2), (1, 1), (1, 1)),
        ((2, 2), (5, 5), (1, 1), (2, 2), (1, 1)),
        ((7, 8), (3, 2), (1, 3), (2, 0), (2, 3)),
    ],
)
def test_bconv2d(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    channels: int,
    pad_value: int,
) -> None:
    x = reference.sign_pack(torch.randn(2, *size, channels))
    weights = reference.sign_pack(torch.randn(5, *kernel, channels))
    words, filters = (packed.signs.numpy().view(np.uint32) for packed in (x, weights))
    g = BConv2dGeometry.check(words, filters, channels, stride, padding, pad_value, dilation, 1)
    expected = numpy_reference.bconv2d(
        words, filters, channels, stride=stride, padding=padding, pad_value=pad_value, dilation=dilation
    )
    found = reference.bconv2d(x.signs, weights.signs, g, x.counts, weights.counts, bn_sums=True)
    assert found.sums is not None and found.sums_of_squares is not None
    assert found.y.dtype == torch.int32 and np.array_equal(found.y.numpy(), expected)
    assert np.array_equal(found.sums.numpy(), expected.sum((0, 1, 2)))
    assert np.array_equal(found.sums_of_squares.numpy(), (expected.astype(np.int64) ** 2).sum((0, 1, 2)))


def test_gemm_is_a_1x1_convolution() -> None:
    a, b = reference.sign_pack(torch.randn(6, 33)), reference.sign_pack(torch.randn(4, 33))
    words, filters = a.signs.view(6, 1, 1, 2), b.signs.view(4, 1, 1, 2)
    expected = numpy_reference.bconv2d(words.numpy().view(np.uint32), filters.numpy().view(np.uint32), 33)
    found = reference.xnor_gemm(a.signs, b.signs, 33, a.counts, b.counts)
    assert np.array_equal(found.numpy(), expected.reshape(6, 4))
