"""Every implementation of the packed convolution against torch's convolution of the same +-1 values, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from bnnedge.errors import ConfigError
from bnnedge.kernels import native, reference
from bnnedge.kernels.layout import pack

BConv2d = Callable[..., NDArray[np.int32]]
Pair = tuple[int, int]

# (height, width), stride, padding, dilation: even maps at stride 2, maps smaller than the filter, uneven everything.
GEOMETRIES: list[tuple[Pair, Pair, Pair, Pair]] = [
    ((7, 7), (1, 1), (0, 0), (1, 1)),
    ((8, 8), (2, 2), (1, 1), (1, 1)),
    ((7, 9), (1, 2), (3, 2), (1, 1)),
    ((1, 1), (1, 1), (3, 3), (1, 1)),
    ((2, 3), (2, 1), (4, 3), (1, 1)),
    ((9, 8), (1, 1), (2, 4), (2, 1)),
    ((8, 9), (3, 2), (4, 5), (1, 2)),
    ((3, 2), (1, 1), (6, 7), (2, 2)),
]


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """Thousands of tiny convolutions: threads that wait for each other would take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def torch_conv(
    signs: NDArray[Any], weights: NDArray[Any], stride: Pair, padding: Pair, pad_value: int, dilation: Pair, groups: int
) -> NDArray[Any]:
    """NHWC and OHWI in, NHWC out; float64 holds every sum exactly."""
    x = torch.from_numpy(signs).double().permute(0, 3, 1, 2)
    w = torch.from_numpy(weights).double().permute(0, 3, 1, 2)
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=float(pad_value))
    y: NDArray[Any] = F.conv2d(x, w, None, stride, 0, dilation, groups).permute(0, 2, 3, 1).numpy()
    return y


def random_signs(rng: np.random.Generator, *shape: int) -> NDArray[np.int8]:
    return rng.choice(np.array([-1, 1], np.int8), shape)


def implementations() -> list[str]:
    """The reference, the native call as it stands, and with each C++ kernel that this CPU runs."""
    return ["native", "reference", *(f"cpp:{name}" for name in (native.kernel_names() if native.available() else []))]


@pytest.fixture(params=implementations())
def bconv2d(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> BConv2d:
    name = str(request.param)
    if name.startswith("cpp:"):
        monkeypatch.setenv("BNNEDGE_KERNEL", name.removeprefix("cpp:"))
        return native.bconv2d
    return native.bconv2d if name == "native" else reference.bconv2d


def check(
    bconv2d: BConv2d,
    signs: NDArray[np.int8],
    weights: NDArray[np.int8],
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    pad_value: int = 0,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> None:
    sums = bconv2d(
        pack(signs),
        pack(weights),
        signs.shape[-1],
        stride=stride,
        padding=padding,
        pad_value=pad_value,
        dilation=dilation,
        groups=groups,
    )
    assert sums.dtype == np.int32
    assert np.array_equal(sums, torch_conv(signs, weights, stride, padding, pad_value, dilation, groups))


@pytest.mark.parametrize("pad_value", [0, 1])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (3, 1), (5, 4), (7, 7)])
@pytest.mark.parametrize("channels", [1, 3, 31, 32, 33, 63, 64, 65, 129])
def test_equals_torch(bconv2d: BConv2d, channels: int, kernel: Pair, pad_value: int) -> None:
    rng = np.random.default_rng(channels)
    weights = random_signs(rng, 3, *kernel, channels)
    ran = 0
    for size, stride, padding, dilation in GEOMETRIES:
        if any(s + 2 * p < d * (k - 1) + 1 for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)):
            continue
        signs = random_signs(rng, 2, *size, channels)
        check(bconv2d, signs, weights, stride=stride, padding=padding, pad_value=pad_value, dilation=dilation)
        ran += 1
    assert ran >= 4


@pytest.mark.parametrize("pad_value", [0, 1])
@pytest.mark.parametrize(("groups", "group_channels"), [(2, 32), (3, 64), (2, 96), (4, 32)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)])
def test_groups(bconv2d: BConv2d, groups: int, group_channels: int, pad_value: int, dilation: Pair) -> None:
    rng = np.random.default_rng(groups)
    signs = random_signs(rng, 2, 6, 5, groups * group_channels)
    weights = random_signs(rng, 3 * groups, 3, 2, group_channels)
    check(bconv2d, signs, weights, padding=(3, 2), stride=(2, 1), pad_value=pad_value, dilation=dilation, groups=groups)


@pytest.mark.parametrize("out_channels", [1, 31, 33])
def test_output_channels(bconv2d: BConv2d, out_channels: int) -> None:
    rng = np.random.default_rng(out_channels)
    check(bconv2d, random_signs(rng, 1, 4, 4, 40), random_signs(rng, out_channels, 3, 3, 40), padding=(1, 1))


@pytest.mark.parametrize("value", [-1, 1])
def test_extreme_sums_beyond_16_bits(bconv2d: BConv2d, value: int) -> None:
    """K = 3 * 3 * 8192 = 73728 and all products alike: the sum is +-K."""
    words = pack(np.ones((1, 3, 3, 8192)))
    filters = pack(np.full((1, 3, 3, 8192), value))
    assert bconv2d(words, filters, 8192).item() == value * 73728


def test_padding_wider_than_any_window(bconv2d: BConv2d) -> None:
    """Windows that lie wholly outside: 0, or the sum of the weights."""
    rng = np.random.default_rng(0)
    signs, weights = random_signs(rng, 1, 2, 2, 33), random_signs(rng, 2, 2, 2, 33)
    for pad_value in (0, 1):
        check(bconv2d, signs, weights, padding=(5, 4), pad_value=pad_value)


def test_strided_arrays(bconv2d: BConv2d) -> None:
    rng = np.random.default_rng(0)
    signs, weights = random_signs(rng, 4, 6, 6, 65), random_signs(rng, 6, 3, 3, 65)
    sums = bconv2d(pack(signs)[::2, ::-1], pack(weights)[::3], 65)
    assert np.array_equal(sums, bconv2d(pack(signs[::2, ::-1]), pack(weights[::3]), 65))


# 2^36 products in one output, in four bytes of memory.
HUGE_FILTER = np.broadcast_to(np.uint32(0), (1, 2**15, 2**15, 2))
WORDS, FILTERS = np.zeros((1, 4, 4, 2), np.uint32), np.zeros((2, 3, 3, 2), np.uint32)


@pytest.mark.parametrize(
    ("words", "filters", "channels", "settings", "message"),
    [
        (WORDS, FILTERS, 65, {}, "65 channels take 3 words"),
        (WORDS, FILTERS, 0, {}, "0 channels do not divide"),
        (WORDS, FILTERS[..., :1], 64, {}, "filter words of 64 channels take 2 words"),
        (WORDS[0], FILTERS, 64, {}, r"\[N, H, W, ceil\(C/32\)\]"),
        (WORDS[:0], FILTERS, 64, {}, "none of them 0"),
        (WORDS.astype(np.int32), FILTERS, 64, {}, "must be uint32, got int32"),
        (WORDS, FILTERS.astype(np.uint64), 64, {}, "must be uint32, got uint64"),
        (WORDS | np.uint32(2**31), FILTERS, 63, {}, "input words have bits set beyond channel 63"),
        (WORDS, FILTERS | np.uint32(2**31), 63, {}, "filter words have bits set beyond channel 63"),
        (WORDS, HUGE_FILTER, 64, {"padding": (2**15, 2**15)}, "one output sums 68719476736 products"),
        (WORDS, FILTERS, 64, {"stride": (0, 1)}, "stride"),
        (WORDS, FILTERS, 64, {"stride": (1.5, 1)}, "stride is two integers"),
        (WORDS, FILTERS, 64, {"padding": (-1, 0)}, "padding"),
        (WORDS, FILTERS, 64, {"padding": (1, 1, 1)}, "padding is two integers"),
        (WORDS, FILTERS, 64, {"dilation": (1, 0)}, "dilation"),
        (WORDS, FILTERS, 64, {"dilation": (2, 1)}, "does not fit into 4x4 pixels"),
        (WORDS, FILTERS, 64, {"pad_value": -1}, "pad_value is 0"),
        (WORDS, FILTERS, 64, {"groups": 3}, "64 channels do not divide into 3 groups"),
        (WORDS, FILTERS, 64, {"groups": 4}, "a group needs a multiple of 32 channels"),
        (WORDS, FILTERS[:1, ..., :1], 64, {"groups": 2}, "1 output channels do not divide into 2 groups"),
    ],
)
def test_bad_arguments_give_one_line(
    bconv2d: BConv2d,
    words: NDArray[Any],
    filters: NDArray[Any],
    channels: int,
    settings: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        bconv2d(words, filters, channels, **settings)
    assert "\n" not in str(caught.value)
