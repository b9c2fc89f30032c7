from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bnnedge.kernels.geometry import BConv2dGeometry, output_size
from bnnedge.kernels.gpu import (
    bconv2d,
    bn_clip_pack,
    bn_gradient,
    bn_statistics,
    conv_launch,
    int8_dot,
    pack,
    reference,
    unpack,
)
from bnnedge.kernels.gpu.reference import Packed
from bnnedge.kernels.gpu.select import PACKED, for_capability

CHANNELS = [1, 3, 31, 32, 33, 63, 64, 65, 544]
TIES = (0.0, -0.0, 1.0, -1.0, 0.5, -0.5, math.nan, math.inf, -math.inf, 1e-45, -1e-45)


def awkward(*shape: int, dtype: torch.dtype = torch.float32, clip: float = 1.0) -> Tensor:
    """Random values with many at the signs' and the clip's borders, next to them, and NaN."""
    x = torch.randn(shape)
    borders = torch.tensor([*TIES, clip, -clip, math.nextafter(clip, 0), 1.0078125 * clip, -1.0078125 * clip])
    chosen = borders[torch.randint(len(borders), shape)]
    return torch.where(torch.rand(shape) < 0.3, chosen, x).to(dtype)


def assert_packed(found: Packed, expected: Packed) -> None:
    for name, a, b in zip(Packed._fields, found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.dtype == torch.int32 and torch.equal(a.cpu(), b), name


@pytest.mark.parametrize("channels", CHANNELS)
def test_sign_pack(device: torch.device, channels: int) -> None:
    x = awkward(2, 3, 5, channels)
    expected = reference.sign_pack(x)
    assert_packed(pack.sign_pack(x.to(device)), expected)
    assert torch.equal(reference.count_bits(expected.signs), expected.counts)
    assert torch.equal(pack.count_bits(expected.signs.to(device)).cpu(), expected.counts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("clip", [1.0, 0.75, 1.3, math.inf])
def test_sign_pack_of_other_types_and_clips(device: torch.device, dtype: torch.dtype, clip: float) -> None:
    x = awkward(7, 40, dtype=dtype, clip=clip)
    assert_packed(pack.sign_pack(x.to(device), clip), reference.sign_pack(x, clip))


def test_new_buffers_are_poisoned(device: torch.device) -> None:
    assert torch.empty(3, dtype=torch.int32, device=device).eq(2**31 - 1).all()
    assert torch.zeros(1, device=device).new_empty(3).isnan().all()


def eighths(*shape: int, most: int = 16) -> Tensor:
    """Multiples of 1/8 up to ``most`` / 8: products and sums of a few are exact in float32, and a contraction changes
    nothing."""
    return torch.randint(-most, most + 1, shape) / 8


@pytest.mark.parametrize("residual_type", [None, torch.float32, torch.float16])
@pytest.mark.parametrize(("y_type", "channels"), [(torch.float32, 65), (torch.float16, 64), (torch.float32, 31)])
def test_bn_clip_pack(
    device: torch.device, residual_type: torch.dtype | None, y_type: torch.dtype, channels: int
) -> None:
    y = eighths(2, 3, 3, channels).to(y_type)
    mean, weight, bias = (eighths(channels, most=8) for _ in range(3))
    invstd = 2.0 ** torch.randint(-1, 2, (channels,))
    residual = None if residual_type is None else eighths(*y.shape).to(residual_type)
    arguments = [None if t is None else t.to(device) for t in (y, mean, invstd, weight, bias, residual)]
    z, packed = bn_clip_pack.bn_clip_pack(*arguments)  # type: ignore[arg-type]
    expected_z, expected = reference.bn_clip_pack(y, mean, invstd, weight, bias, residual)
    assert z.dtype == expected_z.dtype and torch.equal(z.cpu(), expected_z)
    assert (expected_z == 0).any() and (expected_z.abs() == 1).any() and (weight < 0).any()
    assert_packed(packed, expected)


def test_bn_clip_pack_at_the_borders(device: torch.device) -> None:
    """x = y here: signs, mask and clip of every border, -0.0, denormals and NaN."""
    y = awkward(3, 7, 33)
    one, zero = torch.ones(33), torch.zeros(33)
    z, packed = bn_clip_pack.bn_clip_pack(*[t.to(device) for t in (y, zero, one, one, zero)])
    assert torch.equal(z.cpu().nan_to_num(9), y.clamp(-1, 1).nan_to_num(9)) and y.isnan().any()
    assert_packed(packed, reference.bn_clip_pack(y, zero, one, one, zero)[1])


def several_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few programs, so that small maps take several steps of each."""
    monkeypatch.setattr(bn_statistics, "MOST_PROGRAMS", 3)


@pytest.mark.parametrize(("shape", "channels"), [((1, 1, 2), 32), ((2, 3, 5), 65), ((3, 17, 19), 96), ((2, 9, 9), 160)])
def test_batch_statistics(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], channels: int
) -> None:
    """A sum rounds at most 31 times on an element's way (21 steps, a tree of 16 rows, 3 strips, its own 2), so the sum
    of squares about the first element is off by 31 * 2^-24 of itself. It is (1 + d^2) n var with that element d
    standard deviations from the mean, d < 2.7: 256 * 2^-24 of the variance, half as much of its root."""
    several_strips(monkeypatch)
    y = torch.randn(*shape, channels) * torch.linspace(0.1, 3, channels) + torch.linspace(-50, 50, channels)
    running = [torch.randn(channels), torch.rand(channels)]
    there: Any = [t.to(device, copy=True) for t in (y, *running)]
    mean, invstd = bn_statistics.batch_statistics(*[*there, 1e-5, 0.25])
    expected = reference.batch_statistics(y, 1e-5)
    torch.testing.assert_close(mean.cpu(), expected[0], rtol=2**-23, atol=32 * 2**-24)
    torch.testing.assert_close(invstd.cpu(), expected[1], rtol=128 * 2**-24, atol=0)
    unbiased = y.double().flatten(0, -2).var(0).float()
    torch.testing.assert_close(there[1].cpu(), 0.25 * mean.cpu() + 0.75 * running[0], rtol=2**-22, atol=2**-22)
    torch.testing.assert_close(there[2].cpu(), 0.25 * unbiased + 0.75 * running[1], rtol=256 * 2**-24, atol=0)


def test_batch_statistics_of_integers_are_exact_but_for_the_last_rounding(device: torch.device) -> None:
    v = torch.randint(-500, 500, (2, 5, 5, 33)) + 4000
    alpha = torch.rand(33) + 0.5
    sums = torch.stack([v.flatten(0, 2).sum(0), (v * v).flatten(0, 2).sum(0)])
    y = torch.full(v.shape, math.nan)  # not read
    running = [torch.zeros(33), torch.ones(33)]
    there: Any = [t.to(device) for t in (y, *running)]
    mean, invstd = bn_statistics.batch_statistics(*[*there, 1e-5, 0.1, sums.to(device), alpha.to(device)])
    for found, expected in zip((mean, invstd), reference.batch_statistics(v * alpha.double(), 1e-5), strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=2**-22, atol=0)


@pytest.mark.parametrize("needs_residual", [False, True])
@pytest.mark.parametrize(
    ("shape", "channels", "dtype"),
    [((1, 1, 3), 32, torch.float32), ((2, 5, 7), 65, torch.float32), ((3, 11, 5), 160, torch.float16)],
)
def test_bn_clip_gradient(
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    needs_residual: bool,
    shape: tuple[int, ...],
    channels: int,
    dtype: torch.dtype,
) -> None:
    """Multiples of 1/8 whose sums are exact in float32; a few roundings of terms up to 100 remain."""
    several_strips(monkeypatch)
    y, g = eighths(*shape, channels).to(dtype), eighths(*shape, channels).to(dtype)
    mask = reference.pack_bits(torch.rand(y.shape) < 0.7)
    mean, weight = eighths(channels), eighths(channels)
    invstd = torch.rand(channels) + 0.5
    there: Any = [t.to(device) for t in (g, mask, y, mean, invstd, weight)]
    found = bn_gradient.bn_clip_gradient(*[*there, needs_residual])
    expected = reference.bn_clip_gradient(g, mask, y, mean, invstd, weight)
    ulp = 2.0**-10 if dtype == torch.float16 else 0.0
    torch.testing.assert_close(found[0].cpu(), expected[0], rtol=ulp, atol=100 * 2**-22)
    assert (found[1] is None) == (not needs_residual)
    if found[1] is not None:
        assert torch.equal(found[1].cpu(), expected[1])
    torch.testing.assert_close(found[2].cpu(), expected[2], rtol=0, atol=100 * 2**-22)
    assert torch.equal(found[3].cpu(), expected[3])


@pytest.mark.parametrize("channels", CHANNELS)
def test_unpack_signs_inverts_sign_pack(device: torch.device, channels: int) -> None:
    x = awkward(3, 2, channels)
    words = reference.sign_pack(x).signs
    signs = unpack.unpack_signs(words.to(device), channels, torch.float32)
    assert torch.equal(signs.cpu(), torch.where(x < 0, -1.0, 1.0))
    assert torch.equal(reference.unpack_signs(words, channels, torch.float32), signs.cpu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_unpack_scaled_filters(device: torch.device, dtype: torch.dtype) -> None:
    words = reference.sign_pack(torch.randn(5, 3, 3, 33)).signs
    scale = torch.tensor([0.5, -2.0, 0.0, 1.0, 0.25])
    found = unpack.unpack_signs(words.to(device), 33, dtype, scale.to(device))
    assert torch.equal(found.cpu(), reference.unpack_signs(words, 33, dtype, scale))


@pytest.mark.parametrize("channels", [1, 33, 64, 544])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_mask_gradient(device: torch.device, channels: int, dtype: torch.dtype) -> None:
    mask = reference.sign_pack(awkward(2, 3, channels)).mask
    assert mask is not None
    g = torch.randn(2, 3, channels).to(dtype)
    found = unpack.mask_gradient(g.to(device), mask.to(device))
    assert torch.equal(found.cpu(), reference.mask_gradient(g, mask))


def test_masked_gradient_that_is_not_finite_is_dropped(device: torch.device) -> None:
    g = torch.full((1, 2), math.nan)
    mask = torch.tensor([[0b10]], dtype=torch.int32)
    assert unpack.mask_gradient(g.to(device), mask.to(device))[0, 0] == 0


def close_to_one_ulp(found: Tensor, expected: Tensor) -> None:
    """The interpreter cuts bfloat16 off where a GPU rounds it to the nearest."""
    ulp = 2.0**-7 if found.dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(found.cpu(), expected, rtol=ulp, atol=0)


def implementations() -> list[str]:
    """What runs here: in the interpreter all plain ``tl`` ones, on a GPU those it has the instructions for."""
    if not torch.cuda.is_available():
        return ["triton_popcount", "int8_dot", "fp8_dot"]
    capability = torch.cuda.get_device_capability()
    fp8 = ["fp8_dot"] if capability >= (8, 9) else []
    return ["triton_popcount", "int8_dot", *fp8, *({for_capability(capability)} & {"bmma"})]


@pytest.fixture(params=implementations())
def implementation(
    request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Op to function, of one implementation."""
    name = str(request.param)
    on_gpu = device.type == "cuda"
    monkeypatch.setattr(int8_dot, "operand_kind", lambda device: {"FP8": name == "fp8_dot", "ASM": on_gpu})
    if not on_gpu:  # the interpreter computes whole tiles
        monkeypatch.setattr(int8_dot, "TILE", {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_BYTES": 32})
    return {op: PACKED[op].load(name.replace("fp8", "int8")) for op in PACKED}


@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1), (3, 65, 31), (65, 3, 32), (33, 7, 33), (70, 66, 100), (2, 2, 544)]
)
def test_xnor_gemm(device: torch.device, implementation: dict[str, Any], m: int, n: int, k: int) -> None:
    a, b = reference.sign_pack(torch.randn(m, k)), reference.sign_pack(torch.randn(n, k))
    operands = (a.signs, b.signs, k, a.counts, b.counts)
    there: Any = tuple(t.to(device) if isinstance(t, Tensor) else t for t in operands)
    expected: Tensor = reference.xnor_gemm(*operands)
    assert torch.equal(implementation["xnor_gemm"](*there).cpu(), expected)
    assert torch.equal(expected, (torch.where(reference.unpack_bits(a.signs, k), -1, 1)
                                  @ torch.where(reference.unpack_bits(b.signs, k), -1, 1).T).int())  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_xnor_gemm_in_floats(
    device: torch.device, implementation: dict[str, Any], dtype: torch.dtype, has_alpha: bool
) -> None:
    """The output has two tiles of columns, of which the second is not full, and a part of one tile's rows."""
    k, columns = 33, 66
    a, b = reference.sign_pack(torch.randn(5, k)), reference.sign_pack(torch.randn(columns, k))
    operands = (a.signs, b.signs, k, a.counts, b.counts, torch.randn(columns) if has_alpha else None)
    there: Any = tuple(t.to(device) if isinstance(t, Tensor) else t for t in operands)
    close_to_one_ulp(implementation["xnor_gemm"](*there, dtype), reference.xnor_gemm(*operands, dtype))


def geometry(
    size: tuple[int, int, int],
    channels: int,
    out_channels: int,
    kernel: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    pad_value: Any = 0,
) -> BConv2dGeometry:
    out = [output_size(*sizes) for sizes in zip(size[1:], kernel, stride, padding, dilation, strict=True)]
    return BConv2dGeometry(
        *size, channels, out_channels, kernel, stride, padding, pad_value, dilation, 1, out[0], out[1]
    )  # fmt: skip


GEOMETRIES = {
    "1x1": geometry((2, 3, 5), 33, 5, (1, 1)),
    "1x1_stride_2": geometry((1, 6, 7), 64, 3, (1, 1), stride=(2, 2)),
    "3x3": geometry((2, 5, 7), 32, 65, (3, 3), padding=(1, 1)),
    "3x3_one_padding": geometry((2, 6, 5), 32, 5, (3, 3), padding=(1, 1), pad_value=1),
    "even_stride_2": geometry((3, 8, 6), 64, 7, (3, 3), stride=(2, 2), padding=(1, 1)),
    "5x5_map_smaller": geometry((2, 2, 3), 31, 4, (5, 5), padding=(2, 2)),
    "wide_padding": geometry((1, 2, 2), 3, 2, (3, 3), padding=(3, 2)),
    "dilation": geometry((1, 7, 8), 64, 3, (3, 2), stride=(1, 3), padding=(2, 0), dilation=(2, 3)),
    "dilated_one_padding": geometry((1, 5, 5), 33, 3, (3, 3), padding=(2, 2), dilation=(2, 2), pad_value=1),
}


def operands(g: BConv2dGeometry) -> tuple[Packed, Packed]:
    x, weights = torch.randn(g.batch, g.height, g.width, g.channels), torch.randn(g.out_channels, *g.kernel, g.channels)
    return reference.sign_pack(x), reference.sign_pack(weights)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_bconv2d(device: torch.device, implementation: dict[str, Any], name: str) -> None:
    """The integers and their sums for BatchNorm; what is made of the integers does not depend on the geometry."""
    g = GEOMETRIES[name]
    x, weights = operands(g)
    here = (x.signs, weights.signs, g, x.counts, weights.counts)
    there: Any = tuple(t.to(device) if isinstance(t, Tensor) else t for t in here)
    expected: Any = reference.bconv2d(*here, bn_sums=True)
    found = implementation["bconv2d"](*[*there, None, torch.int32, True])
    for a, b in zip(found, expected, strict=True):
        assert a is not None and a.dtype == b.dtype and torch.equal(a.cpu(), b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("has_alpha", "bn_sums"), [(False, False), (True, False), (True, True)])
def test_bconv2d_in_floats(
    device: torch.device, implementation: dict[str, Any], dtype: torch.dtype, has_alpha: bool, bn_sums: bool
) -> None:
    """The output has two tiles of pixels and two of channels; the second ones are not full."""
    g = geometry((2, 5, 7), 33, 65, (1, 1))
    x, weights = operands(g)
    here = (x.signs, weights.signs, g, x.counts, weights.counts, torch.randn(65) if has_alpha else None)
    there: Any = tuple(t.to(device) if isinstance(t, Tensor) else t for t in here)
    found = implementation["bconv2d"](*[*there, dtype, bn_sums])
    expected = reference.bconv2d(*here, dtype, bn_sums)
    close_to_one_ulp(found.y, expected.y)
    assert (found.sums is None) == (not bn_sums)
    if expected.sums is not None:
        assert torch.equal(found.sums.cpu(), expected.sums)


def test_border_table_of_the_usual_convolution_has_nine_rows() -> None:
    g = GEOMETRIES["3x3"]
    classes, table = conv_launch.border_table(g, torch.zeros(g.out_channels, 3, 3, dtype=torch.int32))
    assert table.shape == (9, g.out_channels) and classes.shape == (g.out_height * g.out_width,)
    inside = classes.view(g.out_height, g.out_width)[1:-1, 1:-1]
    assert len(inside.unique()) == 1 and (table[inside[0, 0]] == 9 * g.channels).all()
    assert (table[classes[0]] == 4 * g.channels).all(), "a corner sees 4 taps"


def test_sums_of_squares_pass_32_bits(device: torch.device) -> None:
    g = geometry((1, 3, 11), 8192, 2, (1, 1))
    ones, filters = torch.ones(1, 3, 11, 8192), torch.ones(2, 1, 1, 8192)
    x, weights = reference.sign_pack(ones), reference.sign_pack(filters)
    found = bconv2d.bconv2d(
        x.signs.to(device), weights.signs.to(device), g, x.counts.to(device), weights.counts.to(device), bn_sums=True
    )
    assert found.sums is not None and found.sums.tolist() == [[33 * 8192] * 2, [33 * 8192**2] * 2]
    assert 33 * 8192**2 > 2**31
