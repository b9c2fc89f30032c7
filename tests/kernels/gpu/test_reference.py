"""The torch reference of the GPU kernels against the NumPy reference that every other kernel is compared with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

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
    assert found.sums is not None
    assert found.y.dtype == torch.int32 and np.array_equal(found.y.numpy(), expected)
    for sums, power in zip(found.sums, (1, 2), strict=True):
        assert np.array_equal(sums.numpy(), (expected.astype(np.int64) ** power).sum((0, 1, 2)))


def test_gemm_is_a_1x1_convolution() -> None:
    a, b = reference.sign_pack(torch.randn(6, 33)), reference.sign_pack(torch.randn(4, 33))
    words, filters = a.signs.view(6, 1, 1, 2), b.signs.view(4, 1, 1, 2)
    expected = numpy_reference.bconv2d(words.numpy().view(np.uint32), filters.numpy().view(np.uint32), 33)
    found = reference.xnor_gemm(a.signs, b.signs, 33, a.counts, b.counts)
    assert np.array_equal(found.numpy(), expected.reshape(6, 4))


def test_batch_norm_and_its_gradient_are_pytorchs() -> None:
    """Against float64, where nothing rounds; with u = 2^-24 the rounding of a float32, to the first order in u:

    1. mean and invstd are rounded, so ``n = (y - mean) * invstd`` is off by ``dn = u (abs(mean) invstd + abs(n))``.
    2. z is computed in float32. ``p = (y - mean) * (invstd * weight)`` is off by ``u abs(mean) invstd abs(weight)``
       from the mean and by 4 u of itself from invstd, its product with the weight, the difference and the product; the
       two sums and the expected value are rounded once each.
    3. The gradients are computed in float64 from the rounded mean and invstd and rounded at the end, as the expected
       ones are: the bias's and the residual's see nothing else, the weight's is a sum of ``g * n``, and y's is off by
       what the weight's and n are off by.
    """
    y, g = torch.randn(3, 5, 4, 7) * 4 + 2, torch.randn(3, 5, 4, 7)
    weight, bias, residual = torch.randn(7), torch.randn(7), torch.randn_like(y)
    inputs = [t.double().requires_grad_() for t in (y, residual, weight, bias)]
    maps = inputs[0].permute(0, 3, 1, 2)
    x = F.batch_norm(maps, None, None, inputs[2], inputs[3], training=True).permute(0, 2, 3, 1) + inputs[1]
    F.hardtanh(x).backward(g.double())
    mean, invstd = reference.batch_statistics(y, 1e-5)
    z, bits = reference.bn_clip_pack(y, mean, invstd, weight, bias, residual)
    assert bits.mask is not None and torch.equal(reference.unpack_bits(bits.mask, 7), x.abs() < 1)
    assert torch.equal(bits.signs, reference.sign_pack(z).signs) and torch.equal(bits.counts, (z < 0).sum(-1).int())

    u = 2.0**-24 * (1 + 2**-10)  # with room for the second order
    n, scale = (y.double() - mean) * invstd, (weight * invstd).double().abs()
    dn = u * (mean.abs() * invstd + n.abs())
    p = n * weight
    bound = u * (mean.abs() * scale + 4 * p.abs() + (p + bias).abs() + 2 * x.detach().abs())
    assert ((z - F.hardtanh(x).detach()).abs() <= bound).all()

    found = reference.bn_clip_gradient(g, bits.mask, y, mean, invstd, weight)
    expected = [t.grad for t in inputs]
    passed, count = torch.where(x.abs() < 1, g, 0).double().abs(), y[..., 0].numel()
    along = inputs[2].grad
    assert along is not None
    along_off = (passed * dn).sum((0, 1, 2))
    y_off = scale * (dn * along.abs() + n.abs() * along_off) / count
    offs: list[torch.Tensor | int] = [y_off, 0, along_off, 0]
    for ours, theirs, off in zip(found, expected, offs, strict=True):
        assert theirs is not None
        assert ((ours - theirs).abs() <= off + 3 * u * theirs.abs()).all()
    assert expected[1] is not None and torch.equal(found[1].double(), expected[1])
