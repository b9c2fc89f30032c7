from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bnnedge.kernels.geometry import BConv2dGeometry, output_size
from bnnedge.kernels.gpu import bconv2d, bn_pack, int8_dot, pack, reference, unpack
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


@pytest.mark.parametrize("residual_type", [None, torch.float32, torch.float16])
@pytest.mark.parametrize(("y_type", "channels"), [(torch.int32, 65), (torch.float16, 64), (torch.float32, 31)])
def test_bn_sign_pack(
    device: torch.device, residual_type: torch.dtype | None, y_type: torch.dtype, channels: int
) -> None:
    """Multiples of 1/8, so that product and sum are exact in float32 and a contraction changes nothing."""
    y = torch.randint(-64, 64, (2, 3, 3, channels)).to(y_type)
    scale, shift = torch.randint(-8, 8, (channels,)) / 8, torch.randint(-8, 8, (channels,)) / 8
    residual = None if residual_type is None else (torch.randint(-16, 16, y.shape) / 8).to(residual_type)
    arguments: list[Any] = [None if t is None else t.to(device) for t in (y, scale, shift, residual)]
    z, packed = bn_pack.bn_sign_pack(*[*arguments, 0.75])
    expected_z, expected = reference.bn_sign_pack(y, scale, shift, residual, 0.75)
    assert z.dtype == expected_z.dtype and torch.equal(z.cpu(), expected_z)
    assert (expected_z == 0).any() and (expected_z.abs() == 0.75).any() and (scale < 0).any()
    assert_packed(packed, expected)


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
@pytest.mark.parametrize("has_residual", [False, True])
def test_mask_gradient(device: torch.device, channels: int, has_residual: bool) -> None:
    mask = reference.sign_pack(awkward(2, 3, channels)).mask
    assert mask is not None
    g = torch.randn(2, 3, channels)
    residual = torch.randn_like(g) if has_residual else None
    found = unpack.mask_gradient(g.to(device), mask.to(device), None if residual is None else residual.to(device))
    assert torch.equal(found.cpu(), reference.mask_gradient(g, mask, residual))


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
def packed_ops(request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
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
def test_xnor_gemm(device: torch.device, packed_ops: dict[str, Any], m: int, n: int, k: int) -> None:
    xnor_gemm = packed_ops["xnor_gemm"]
    a, b = reference.sign_pack(torch.randn(m, k)), reference.sign_pack(torch.randn(n, k))
    operands = (a.signs, b.signs, k, a.counts, b.counts)
    there: Any = tuple(t.to(device) if isinstance(t, Tensor) else t for t in operands)
    expected: Tensor = reference.xnor_gemm(*operands)
    assert torch.equal(xnor_gemm(*there).cpu(), expected)
    assert torch.equal(expected, (torch.where(reference.unpack_bits(a.signs, k), -1, 1)
                                  @ torch.where(reference.unpack_bits(b.signs, k), -1, 1).T).int())  # fmt: skip
    alpha = torch.randn(n)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for scale in (None, alpha):
            found = xnor_gemm(*[*there, None if scale is None else scale.to(device), dtype])
            close_to_one_ulp(found, reference.xnor_gemm(*operands, scale, dtype))


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
def test_bconv2d(device: torch.device, packed_ops: dict[str, Any], name: str) -> None:
    conv = packed_ops["bconv2d"]
    g = GEOMETRIES[name]
    x, weights = operands(g)
    here = (x.signs, weights.signs, g, x.counts, weights.counts)
    there: Any = tuple(t.to(device) if isinstance(t, Tensor) else t for t in here)
    expected: Any = reference.bconv2d(*here, bn_sums=True)
    found = conv(*[*there, None, torch.int32, True])
    for a, b in zip(found, expected, strict=True):
        assert a is not None and a.dtype == b.dtype and torch.equal(a.cpu(), b)
    alpha = torch.randn(g.out_channels)
    for dtype in (torch.float32, torch.bfloat16):
        scaled = conv(*[*there, alpha.to(device), dtype])
        assert scaled.sums is None
        close_to_one_ulp(scaled.y, reference.bconv2d(*here, alpha, dtype).y)
    plain = conv(*[*there, None, torch.float32])
    assert torch.equal(plain.y.cpu(), expected.y.float())


def test_border_table_of_the_usual_convolution_has_nine_rows() -> None:
    g = GEOMETRIES["3x3"]
    classes, table = bconv2d.border_table(g, torch.zeros(g.out_channels, 3, 3, dtype=torch.int32))
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
    assert found.sums_of_squares is not None and found.sums_of_squares.tolist() == [33 * 8192**2] * 2
    assert 33 * 8192**2 > 2**31
