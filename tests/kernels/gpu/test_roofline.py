from __future__ import annotations

import pytest

pytest.importorskip("triton")

from bnnedge.errors import ConfigError
from bnnedge.kernels.geometry import BConv2dGeometry
from bnnedge.kernels.gpu.bmma import Tile
from bnnedge.kernels.gpu.roofline import bconv2d, gemm, gpu_named, pack, pack_bytes, tail_bytes

H200 = gpu_named("NVIDIA H200")
LARGE, NARROW = Tile(4, 4, 2, 4), Tile(2, 2, 4, 2)


def test_a_large_product_is_bound_by_arithmetic() -> None:
    modelled = gemm(H200, 8192, 8192, 8192, LARGE, out_bytes=2)
    assert modelled.bound == "arithmetic"
    assert modelled.tera_operations_per_s == pytest.approx(35_400 * 132 * 1.755e9 / 1e12)


def test_small_tiles_are_bound_by_l2() -> None:
    modelled = gemm(H200, 8192, 8192, 8192, NARROW, out_bytes=2)
    assert modelled.bound == "L2"
    assert modelled.seconds == pytest.approx(64 * 128 * (128 + 64) * 1024 / (3_900 * 1.755e9))


def test_a_binary_product_is_faster_than_the_same_in_bf16() -> None:
    times = [gemm(H200, 4096, 4096, 4096, LARGE, 2, kind).seconds for kind in ("binary", "int8", "bf16")]
    assert times == sorted(times)
    bf16 = gemm(H200, 4096, 4096, 4096, LARGE, 2, "bf16")
    assert bf16.bound == "L2", "this tile would feed bf16 too slowly"
    assert bf16.seconds == pytest.approx(32 * 16 * 384 * 8192 / (3_900 * 1.755e9))


def test_a_layer_with_few_channels_is_bound_by_memory() -> None:
    g = BConv2dGeometry(256, 56, 56, 64, 64, (3, 3), (1, 1), (1, 1), 0, (1, 1), 1, 56, 56)
    modelled = bconv2d(H200, g, NARROW, out_bytes=2)
    pixels = 256 * 56 * 56
    assert modelled.bound == "memory"
    assert modelled.seconds == pytest.approx((pixels * (8 + 4 + 128) + 64 * 9 * (8 + 4)) / 4.3e12)
    assert modelled.operations == 2 * pixels * 64 * 9 * 64


def test_packing_is_bound_by_memory() -> None:
    modelled = pack(H200, 43 * 10**9)
    assert modelled.bound == "memory" and modelled.operations == 0
    assert modelled.seconds == pytest.approx(0.01)


def test_packing_moves_two_bytes_and_a_quarter() -> None:
    elements, channels = 256 * 56 * 56 * 64, 64
    assert pack_bytes(elements, channels, value_bytes=2) == elements * 2.25 + elements // channels * 4


def test_a_tail_moves_less_than_its_layers_one_by_one() -> None:
    """Forward, batch norm takes 3 passes over y, the sum 3, hardtanh 2, its mask and the next signs a packing each;
    backward, hardtanh takes 2 and its mask, batch norm 5, the clip of the next convolution 2 and its mask."""
    elements, channels = 256 * 14 * 14 * 256, 256
    counts = elements // channels * 4
    forward, backward = tail_bytes(elements, channels, 2)
    assert (forward, backward) == (elements * 6.25 + counts, elements * 12.125)
    layers = (3 + 3 + 2) * 2 * elements + 2 * pack_bytes(elements, channels, 2)
    assert layers == elements * 20.5 + 2 * counts > 3 * forward
    assert (2 + 5 + 2) * 2 * elements + 2 * elements // 8 == elements * 18.25 > 1.5 * backward


def test_an_unknown_gpu_is_named() -> None:
    assert gpu_named("NVIDIA A100-SXM4-80GB").processors == 108
    with pytest.raises(ConfigError, match=r"Tesla T4.*known are H200, H100, A100"):
        gpu_named("Tesla T4")
