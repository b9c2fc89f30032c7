"""The launchers of the 1-bit tensor core kernels with their kernels run by ``gluon_model``, against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton")

from triton.experimental.gluon import language as gl

from bnnedge.errors import ConfigError
from bnnedge.kernels.geometry import BConv2dGeometry, output_size
from bnnedge.kernels.gpu import bmma, bmma_conv2d, bmma_gemm, conv_launch, reference
from tests.kernels.gpu import gluon_model

KINDS = {torch.int32: gl.int32, torch.int64: gl.int64, torch.float32: gl.float32, torch.float16: gl.float16}
# Small tiles of every kind, so that small shapes have several of them.
SMALL = bmma.Config(bmma.Tile(m_tiles=1, n_pairs=1, warps_m=2, warps_n=1), words=16, stages=2)
WIDE = bmma.Config(bmma.Tile(m_tiles=2, n_pairs=1, warps_m=1, warps_n=2), words=32, stages=4)


class Modelled:
    """A kernel that the model runs when it is launched."""

    def __init__(self, kernel: Any, late: bool) -> None:
        self.kernel, self.late = kernel, late

    def __getitem__(self, grid: tuple[int]) -> Any:
        def run(*arguments: Any, num_warps: int, **constants: Any) -> None:
            assert num_warps == constants["CONFIG"].tile.warps
            gluon_model.launch(self.kernel, grid[0], self.late, *map(pointer, arguments), **constants)

        return run


def pointer(argument: Any) -> Any:
    """Tensors as the model's pointers to the same memory, words unsigned; everything else as it is."""
    if not isinstance(argument, Tensor):
        return argument
    flat = argument.detach().flatten().numpy()
    assert np.shares_memory(flat, argument.numpy())
    return gluon_model.Pointer(flat, KINDS[argument.dtype])


@pytest.fixture(params=["early", "late"])
def late(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "late")


def model(monkeypatch: pytest.MonkeyPatch, config: bmma.Config, late: bool) -> None:
    monkeypatch.setattr(bmma_gemm, "bmma_gemm_kernel", Modelled(bmma_gemm.bmma_gemm_kernel, late))
    monkeypatch.setattr(bmma_conv2d, "bmma_conv2d_kernel", Modelled(bmma_conv2d.bmma_conv2d_kernel, late))
    for module in (bmma_gemm, bmma_conv2d):
        monkeypatch.setattr(module, "config_for", lambda *arguments: config)
    monkeypatch.setattr(conv_launch, "window_counts", box_sums)


@pytest.mark.parametrize(
    ("m", "n", "k", "config"),
    [
        (1, 1, 1, SMALL),
        (33, 17, 31, SMALL),
        (32, 16, 512, SMALL),
        (70, 7, 1056, SMALL),
        (7, 66, 545, WIDE),
        (40, 33, 64, WIDE),
        (3, 5, 6176, WIDE),
    ],
)
def test_xnor_gemm(monkeypatch: pytest.MonkeyPatch, late: bool, config: bmma.Config, m: int, n: int, k: int) -> None:
    model(monkeypatch, config, late)
    a, b = reference.sign_pack(torch.randn(m, k)), reference.sign_pack(torch.randn(n, k))
    found = bmma_gemm.xnor_gemm(a.signs, b.signs, k, a.counts, b.counts)
    assert torch.equal(found, reference.xnor_gemm(a.signs, b.signs, k, a.counts, b.counts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("scaled", [False, True])
def test_scaled_xnor_gemm(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, scaled: bool) -> None:
    model(monkeypatch, SMALL, late=True)
    a, b = reference.sign_pack(torch.randn(34, 100)), reference.sign_pack(torch.randn(18, 100))
    alpha = torch.randn(18) if scaled else None
    found = bmma_gemm.xnor_gemm(a.signs, b.signs, 100, a.counts, b.counts, alpha, dtype)
    assert torch.equal(found, reference.xnor_gemm(a.signs, b.signs, 100, a.counts, b.counts, alpha, dtype))


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
    "1x1": (SMALL, geometry((2, 3, 7), 33, 5, (1, 1))),
    "1x1_stride_2": (SMALL, geometry((1, 6, 7), 1056, 17, (1, 1), stride=(2, 2))),
    "3x3": (SMALL, geometry((2, 4, 5), 64, 18, (3, 3), padding=(1, 1))),
    "3x3_one_padding": (SMALL, geometry((2, 4, 5), 96, 5, (3, 3), padding=(1, 1), pad_value=1)),
    "even_stride_2": (WIDE, geometry((3, 8, 6), 128, 7, (3, 3), stride=(2, 2), padding=(1, 1))),
    "5x5_map_smaller": (WIDE, geometry((2, 2, 3), 31, 34, (5, 5), padding=(2, 2))),
    "wide_padding": (SMALL, geometry((1, 2, 2), 3, 2, (3, 3), padding=(3, 2))),
    "dilation": (SMALL, geometry((1, 7, 8), 64, 3, (3, 2), stride=(1, 3), padding=(2, 0), dilation=(2, 3))),
}


def operands(g: BConv2dGeometry) -> tuple[Any, ...]:
    x = reference.sign_pack(torch.randn(g.batch, g.height, g.width, g.channels))
    weights = reference.sign_pack(torch.randn(g.out_channels, *g.kernel, g.channels))
    return x.signs, weights.signs, g, x.counts, weights.counts


def box_sums(counts: Tensor, g: BConv2dGeometry) -> Tensor:
    """``conv_launch.window_counts``, whose kernel needs a GPU or the interpreter."""
    ones = torch.ones(1, 1, *g.kernel, dtype=torch.float64)
    sums = F.conv2d(counts.double().unsqueeze(1), ones, None, g.stride, g.padding, g.dilation)
    return sums.squeeze(1).to(torch.int32)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_bconv2d(monkeypatch: pytest.MonkeyPatch, late: bool, name: str) -> None:
    config, g = GEOMETRIES[name]
    model(monkeypatch, config, late)
    arguments = operands(g)
    found = bmma_conv2d.bconv2d(*[*arguments, None, torch.int32, True])
    expected = reference.bconv2d(*[*arguments, None, torch.int32, True])
    for a, b in zip(found, expected, strict=True):
        assert a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("scaled", [False, True])
def test_scaled_bconv2d(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, scaled: bool) -> None:
    config, g = GEOMETRIES["3x3"]
    model(monkeypatch, config, late=False)
    arguments = operands(g)
    alpha = torch.randn(g.out_channels) if scaled else None
    found = bmma_conv2d.bconv2d(*[*arguments, alpha, dtype])
    assert found.sums is None
    assert torch.equal(found.y, reference.bconv2d(*[*arguments, alpha, dtype]).y)


def test_a_gpu_without_1_bit_tensor_cores_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    with pytest.raises(ConfigError, match=r"8\.0 to 9\.0, cuda:0 has 10\.0; take the int8_dot"):
        bmma.config_for("bconv2d", torch.device("cuda:0"), 1, 1, 4)
