"""Prepared convolutions, packing and pooling in C++, each kernel against the numpy reference, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnnedge.errors import ConfigError
from bnnedge.kernels import native, reference
from bnnedge.kernels.geometry import BConv2dGeometry
from bnnedge.kernels.layout import Words, pack, unpack, words_for
from bnnedge.kernels.native import Conv, OutputTransform, Tail

Pair = tuple[int, int]

KERNELS = native.kernel_names() if native.available() else []
CHANNELS = [1, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129]
KINDS = ["sums", "float", "nchw", "int8", "bits"]
POISON = 0x5A
INT32 = np.iinfo(np.int32)

pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernels were not built")


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def random_signs(rng: np.random.Generator, *shape: int) -> NDArray[np.int8]:
    return rng.choice(np.array([-1, 1], np.int8), shape)


def surrounded(words: Words) -> Words:
    """The same words between others of ones, so that reading over the edge changes counts."""
    room = np.full(words.size + 64, 0xFFFFFFFF, np.uint32)
    inner = room[32:-32].reshape(words.shape)
    inner[:] = words
    return inner


class Guarded:
    """An output array of poison inside more poison."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.room = np.full(self.count + 256, POISON, np.uint8)
        self.array: NDArray[Any] = self.room[128 : 128 + self.count].view(dtype).reshape(shape)

    def intact(self) -> bool:
        return bool(np.all(self.room[:128] == POISON) and np.all(self.room[128 + self.count :] == POISON))


class Case:
    """One convolution: its sums by the reference, and what each transform should make of them."""

    def __init__(
        self,
        seed: int,
        shape: tuple[int, int, int, int],
        out_channels: int,
        window: Pair,
        *,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        pad_value: int = 0,
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        channels = shape[-1]
        self.words = pack(random_signs(self.rng, *shape))
        self.filters = pack(random_signs(self.rng, out_channels, *window, channels // groups))
        self.geometry = BConv2dGeometry.check(
            self.words, self.filters, channels, stride, padding, pad_value, dilation, groups
        )
        self.products = window[0] * window[1] * (channels // groups)
        self.sums = reference.bconv2d(
            self.words,
            self.filters,
            channels,
            stride=stride,
            padding=padding,
            pad_value=pad_value,
            dilation=dilation,
            groups=groups,
        )

    def transform(self, kind: str, *, doubled: bool = False, clamps: bool = False) -> OutputTransform:
        count = self.sums.shape[-1]
        spread = max(1.0, float(np.abs(self.sums).max()))
        # Quarters make halves that int8 has to round away from zero, and values beyond its range.
        multiplier = self.rng.choice(np.array([-0.75, -0.5, 0.25, 0.5, 1.25]), count) * max(1.0, 64 / spread)
        if kind != "int8":
            multiplier = self.rng.standard_normal(count)
        middle = self.products if doubled else 0
        limit = np.asarray(self.rng.integers(-8, 9, count) + middle)
        limit[:: max(1, count // 3)] = self.rng.choice([INT32.min, INT32.max, middle])
        return OutputTransform(
            kind="float" if kind == "nchw" else kind,
            doubled_popcount=doubled,
            nchw=kind == "nchw",
            clamp=(middle - 3, middle + 5) if clamps else (INT32.min, INT32.max),
            multiplier=multiplier.astype(np.float32),
            bias=self.rng.choice(np.array([0, 0.5, -3.25, 100.0]), count).astype(np.float32),
            threshold=limit.astype(np.int32),
        )

    def expected(self, transform: OutputTransform) -> NDArray[Any]:
        v = self.products - self.sums if transform.doubled_popcount else self.sums
        if transform.kind == "sums":
            return np.asarray(v)
        if transform.kind == "bits":
            assert transform.threshold is not None
            bits = v > transform.threshold if transform.doubled_popcount else v < transform.threshold
            return pack(np.where(bits, -1, 1))
        assert transform.multiplier is not None and transform.bias is not None
        y = np.clip(v, *transform.clamp).astype(np.float32) * transform.multiplier + transform.bias
        assert y.dtype == np.float32
        if transform.kind == "int8":
            away = np.trunc(y.astype(np.float64) + np.copysign(0.5, y))
            return np.asarray(np.clip(away, -128, 127), np.int8)
        y = y.transpose(0, 3, 1, 2) if transform.nchw else y
        return np.array(y, np.float32, order="C")

    def check(self, kernel: str, transform: OutputTransform, *, threads: int = 1) -> None:
        params = native.to_params(self.geometry)
        conv = Conv(params, surrounded(self.filters), transform, kernel=kernel, threads=threads)
        assert conv.kernel == kernel
        expected = self.expected(transform)
        assert conv.output_shape == expected.shape
        out = Guarded(expected.shape, expected.dtype)
        conv(surrounded(self.words), out.array)
        assert np.array_equal(out.array.view(np.uint8), expected.view(np.uint8)), transform.kind
        assert out.intact()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_channels(kernel: str, channels: int, kind: str) -> None:
    """Every count as inputs and as outputs, with and without a clamp, in both domains."""
    for pad_value in (0, 1):
        case = Case(channels, (1, 5, 4, channels), 129 - channels % 128, (3, 3), padding=(1, 1), pad_value=pad_value)
        for doubled in (False, True):
            for clamps in (False, True):
                case.check(kernel, case.transform(kind, doubled=doubled, clamps=clamps))
    case = Case(channels, (2, 3, 3, 40), channels, (2, 2), stride=(1, 1))
    case.check(kernel, case.transform(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14, 15, 16, 17, 21, 22, 23, 28, 31, 32, 45])
def test_row_lengths(kernel: str, width: int, kind: str) -> None:
    """Every way of cutting a row into tiles."""
    case = Case(width, (1, 2, width, 32), 48, (1, 3), padding=(0, 1))
    case.check(kernel, case.transform(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pad_value", [0, 1])
@pytest.mark.parametrize("window", [(1, 1), (2, 2), (3, 1), (3, 3), (5, 4), (7, 7)])
def test_windows(kernel: str, window: Pair, pad_value: int, kind: str) -> None:
    """Strides on even sizes, dilation, uneven padding, images smaller than the window."""
    cases = [
        ((2, 8, 8), (2, 2), (1, 1), (1, 1)),
        ((1, 7, 9), (1, 2), (3, 2), (1, 1)),
        ((1, 1, 1), (1, 1), (3, 3), (1, 1)),
        ((1, 9, 8), (1, 1), (2, 4), (2, 1)),
        ((2, 8, 9), (3, 2), (4, 5), (1, 2)),
        ((1, 3, 2), (1, 1), (12, 11), (2, 2)),
        ((1, 2, 2), (1, 1), (5, 4), (1, 1)),
    ]
    ran = 0
    for (batch, height, width), stride, padding, dilation in cases:
        room = (height + 2 * padding[0], width + 2 * padding[1])
        if any(r < d * (k - 1) + 1 for r, d, k in zip(room, dilation, window, strict=True)):
            continue
        shape = (batch, height, width, 33)
        case = Case(7, shape, 34, window, stride=stride, padding=padding, pad_value=pad_value, dilation=dilation)
        case.check(kernel, case.transform(kind, doubled=pad_value == 0))
        ran += 1
    assert ran >= 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("groups", "group_channels", "group_outputs"), [(2, 32, 33), (3, 64, 5), (2, 96, 64), (5, 32, 1)]
)
def test_groups(kernel: str, groups: int, group_channels: int, group_outputs: int, kind: str) -> None:
    """The bits of some groups share words with other groups."""
    case = Case(
        groups, (2, 5, 4, groups * group_channels), groups * group_outputs, (3, 2), padding=(1, 1), groups=groups
    )
    for threads in (1, 3):
        case.check(kernel, case.transform(kind), threads=threads)


@pytest.mark.parametrize("words", [5, 6, 7, 17, 18, 19, 35, 36, 37, 71, 73, 108, 145])
def test_long_filters(kernel: str, words: int) -> None:
    """Around the points where a kernel flushes its counters."""
    for out_channels in (16, 40, 130):
        case = Case(words, (1, 1, 3, 32 * words), out_channels, (1, 1))
        case.check(kernel, case.transform("sums"))


@pytest.mark.parametrize("value", [-1, 1])
def test_counts_beyond_16_bits(kernel: str, value: int) -> None:
    """K = 3 * 3 * 8192 = 73728 and all products alike."""
    words, filters = pack(np.ones((1, 3, 3, 8192))), pack(np.full((70, 3, 3, 8192), value))
    geometry = BConv2dGeometry.check(words, filters, 8192, (1, 1), (0, 0), 0, (1, 1), 1)
    for doubled in (False, True):
        conv = Conv(native.to_params(geometry), filters, OutputTransform(doubled_popcount=doubled), kernel=kernel)
        assert np.all(conv(words) == (73728 - value * 73728 if doubled else value * 73728))


@pytest.mark.parametrize("multiplier", [3.0e38, 1.0e-38, 1.4e-45, 0.0, -0.0, float("inf")])
def test_extreme_multipliers(kernel: str, multiplier: float) -> None:
    """Where scaling by two would overflow or lose bits."""
    case = Case(3, (1, 4, 4, 64), 20, (3, 3), padding=(1, 1))
    count = np.full(20, multiplier, np.float32)
    with np.errstate(all="ignore"):
        case.check(kernel, OutputTransform(kind="float", multiplier=count, bias=np.zeros(20, np.float32)))


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_threads(kernel: str, kind: str, threads: int) -> None:
    """Few rows and many blocks, many rows and one block, and a copy large enough to be shared out."""
    for shape, out_channels in (((1, 2, 3, 64), 300), ((3, 9, 5, 32), 16), ((1, 40, 40, 1600), 8)):
        if shape[-1] == 1600 and (kind != "bits" or kernel == "reference"):
            continue
        case = Case(threads, shape, out_channels, (1, 1) if shape[-1] == 1600 else (3, 3), padding=(1, 1))
        case.check(kernel, case.transform(kind), threads=threads)


def test_other_sizes(kernel: str) -> None:
    case = Case(0, (1, 5, 6, 64), 40, (3, 3), padding=(1, 1))
    conv = Conv(native.to_params(case.geometry), case.filters, OutputTransform(kind="float", **ones(40)), kernel=kernel)
    for shape in ((1, 5, 6, 64), (3, 2, 9, 64), (1, 1, 1, 64), (1, 5, 6, 64)):
        words = pack(random_signs(case.rng, *shape))
        expected = reference.bconv2d(words, case.filters, 64, padding=(1, 1))
        assert np.array_equal(conv(words), expected)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("channels", [1, 33, 64])
def test_float_inputs_are_packed_first(kernel: str, channels: int, threads: int) -> None:
    """One convolution takes images of other sizes, with fewer pixels than threads, and between packed inputs."""
    case = Case(0, (1, 5, 6, channels), 40, (3, 3), padding=(1, 1))
    conv = Conv(native.to_params(case.geometry), case.filters, kernel=kernel, threads=threads)
    for shape in ((1, 5, 6, channels), (3, 2, 9, channels), (1, 1, 1, channels), (1, 5, 6, channels)):
        values = awkward_floats(case.rng, *shape)
        expected = reference.bconv2d(pack(values), case.filters, channels, padding=(1, 1))
        assert np.array_equal(conv(values), expected)
        assert np.array_equal(conv(pack(values)), expected)
    out = np.empty_like(expected)
    run = conv.bind(values, out)
    out[:] = 12345
    run()
    assert np.array_equal(out, expected)


def test_refused_size_leaves_the_conv_usable(kernel: str) -> None:
    case = Case(0, (1, 5, 6, 64), 40, (3, 3))
    conv = Conv(native.to_params(case.geometry), case.filters, kernel=kernel)
    with pytest.raises(ConfigError, match="window does not fit"):
        conv(np.zeros((1, 2, 6, 2), np.uint32))
    assert np.array_equal(conv(case.words), case.sums)


def ones(count: int) -> dict[str, Any]:
    return {"multiplier": np.ones(count, np.float32), "bias": np.zeros(count, np.float32)}


def test_asymmetric_padding(kernel: str) -> None:
    """TensorFlow's SAME at stride 2 on an even map: the symmetric result of a map that is cut off."""
    case = Case(0, (1, 8, 8, 40), 33, (3, 3))
    for top, bottom, left, right, pad_value in ((0, 1, 0, 1, 0), (0, 1, 2, 0, 0), (3, 0, 0, 1, 1)):
        params = native.to_params(case.geometry)
        params.pad_top, params.pad_bottom, params.pad_left, params.pad_right = top, bottom, left, right
        params.pad_value, params.stride_height, params.stride_width = pad_value, 2, 2
        signs = np.pad(
            unpack(case.words, 40).astype(np.int32),
            ((0, 0), (top, bottom), (left, right), (0, 0)),
            constant_values=pad_value,
        )
        weights = unpack(case.filters, 40).astype(np.int32)
        view: Any = np.lib.stride_tricks.sliding_window_view  # its types differ between versions of NumPy
        windows = view(signs, (3, 3), (1, 2))[:, ::2, ::2]
        expected = np.einsum("nyxchw,ohwc->nyxo", windows, weights)
        conv = Conv(params, case.filters, kernel=kernel)
        assert np.array_equal(conv(case.words), expected)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (OutputTransform(kind="float"), "multiplier must have one value per output channel, expected 4, got 0"),
        (OutputTransform(kind="bits"), "threshold must have one value per output channel, expected 4, got 0"),
        (OutputTransform(kind="int8", nchw=True, **ones(4)), "only float outputs can be NCHW"),
        (OutputTransform(kind="float", clamp=(2, 1), **ones(4)), "the clamp is empty: low 2, high 1"),
        (
            OutputTransform(kind="int8", multiplier=np.full(4, np.inf, np.float32), bias=np.zeros(4, np.float32)),
            "multiplier of an int8 output must be finite",
        ),
        (OutputTransform(kind="float", **ones(3)), r"multiplier must have one value per output channel, shape \(4,\)"),
        (OutputTransform(kind="words"), "transform kind is one of sums, float, int8, bits, got words"),
    ],
)
def test_bad_transforms(transform: OutputTransform, message: str) -> None:
    case = Case(0, (1, 3, 3, 32), 4, (3, 3))
    with pytest.raises(ConfigError, match=message) as caught:
        Conv(native.to_params(case.geometry), case.filters, transform)
    assert "\n" not in str(caught.value)


def test_bad_buffers_and_settings() -> None:
    case = Case(0, (1, 3, 3, 32), 4, (3, 3))
    params = native.to_params(case.geometry)
    with pytest.raises(ConfigError, match=r"kernel fastest does not run on this CPU; known: .*reference"):
        Conv(params, case.filters, kernel="fastest")
    with pytest.raises(ConfigError, match=r"threads must be in \[1, 1024\], got 0"):
        Conv(params, case.filters, threads=0)
    with pytest.raises(ConfigError, match="filter must have 36 elements, got 27"):
        Conv(params, case.filters[:3])
    with pytest.raises(ConfigError, match="filters must be uint32, got int32"):
        Conv(params, case.filters.view(np.int32))
    conv = Conv(params, case.filters)
    with pytest.raises(ConfigError, match=r"out must be contiguous int32 \(1, 1, 1, 4\)"):
        conv(case.words, np.zeros((1, 1, 1, 4), np.float32))
    with pytest.raises(ConfigError, match="input must have 9 elements, got 18"):
        conv(np.zeros((1, 3, 3, 2), np.uint32))
    with pytest.raises(ConfigError, match="input must have 288 elements, got 297"):
        conv(np.zeros((1, 3, 3, 33), np.float32))
    with pytest.raises(
        ConfigError, match=r"uint32 \[N, H, W, ceil\(C/32\)\] or float32 .*, got float64 \(1, 3, 3, 32\)"
    ):
        conv(np.zeros((1, 3, 3, 32)))
    with pytest.raises(ConfigError, match="bind needs a contiguous input"):
        conv.bind(np.zeros((1, 3, 3, 64), np.float32)[..., ::2], np.empty((1, 1, 1, 4), np.int32))


# ---- The tail of a residual block ----


def finished(y: NDArray[np.float32], tail: Tail, residual: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The steps of ``Tail`` one by one, in float32."""
    if residual is not None:
        y = y + residual
    if tail.slope is not None:
        y = np.where(y < 0, y * tail.slope, y)
    if tail.offset is not None:
        y = y + tail.offset
    y = np.where(y < np.float32(tail.low), np.float32(tail.low), y)
    y = np.where(y > np.float32(tail.high), np.float32(tail.high), y)
    assert y.dtype == np.float32
    return np.ascontiguousarray(y)


def tails(rng: np.random.Generator, count: int) -> list[Tail]:
    """Every step alone, and all of them."""
    slope = rng.choice([-1.5, -0.0, 0.0, 0.25], count).astype(np.float32)
    offset = rng.choice([-2.5, 0.0, 1.0], count).astype(np.float32)
    limit = rng.choice([-1.0, -0.0, 0.5, np.inf, np.nan], count).astype(np.float32)
    return [
        Tail(adds_residual=True),
        Tail(slope=slope),
        Tail(offset=offset),
        Tail(low=-1.0, high=1.0),
        Tail(low=0.0),
        Tail(writes_bits=True),
        Tail(writes_bits=True, limit=limit),
        Tail(adds_residual=True, low=-1.0, high=1.0, writes_bits=True),
        Tail(True, slope, offset, -2.0, 6.0, True, limit),
    ]


def check_tail(case: Case, kernel: str, tail: Tail, *, threads: int = 1, in_place: bool = False) -> None:
    plain = case.transform("float", doubled=True, clamps=True)
    y = case.expected(plain)
    residual = awkward_floats(case.rng, *y.shape) if tail.adds_residual else None
    with np.errstate(all="ignore"):
        expected = finished(y, tail, residual)
    limit = np.zeros(y.shape[-1], np.float32) if tail.limit is None else tail.limit
    params = native.to_params(case.geometry)
    conv = Conv(params, case.filters, replace(plain, tail=tail), kernel=kernel, threads=threads)
    out, bits = Guarded(y.shape, np.float32), Guarded((*y.shape[:3], words_for(y.shape[-1])), np.uint32)
    if in_place and residual is not None:
        out.array[:] = residual
        residual = out.array
    conv(surrounded(case.words), out.array, residual=residual, bits=bits.array if tail.writes_bits else None)
    # A NaN stays one; which one is the CPU's business.
    assert np.array_equal(np.isnan(out.array), np.isnan(expected))
    known = ~np.isnan(expected)
    assert np.array_equal(out.array[known].view(np.uint32), expected[known].view(np.uint32))
    if tail.writes_bits:
        assert np.array_equal(bits.array, pack(np.where(expected < limit, -1, 1)))
    assert out.intact() and bits.intact()


@pytest.mark.parametrize("channels", [1, 3, 15, 31, 32, 33, 64, 65, 127, 130])
def test_tails(kernel: str, channels: int) -> None:
    case = Case(channels, (2, 4, 5, 33), channels, (3, 3), padding=(1, 1))
    for tail in tails(case.rng, channels):
        check_tail(case, kernel, tail)


def test_tail_in_place_in_threads_in_groups(kernel: str) -> None:
    case = Case(0, (1, 9, 5, 64), 300, (3, 3), padding=(1, 1))
    grouped = Case(1, (1, 4, 4, 64), 64, (3, 3), padding=(1, 1), groups=2)
    for tail in tails(case.rng, 300):
        check_tail(case, kernel, tail, threads=3, in_place=True)
    for tail in tails(grouped.rng, 64):
        check_tail(grouped, kernel, tail)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (OutputTransform(kind="sums", tail=Tail(low=0.0)), "only float outputs in NHWC can have a tail"),
        (OutputTransform(kind="float", nchw=True, **ones(33), tail=Tail(low=0.0)), "only float outputs in NHWC"),
        (OutputTransform(kind="float", **ones(33), tail=Tail(low=1.0, high=0.0)), "low must not be above its high"),
        (OutputTransform(kind="float", **ones(33), tail=Tail(high=float("nan"))), "low must not be above its high"),
        (
            OutputTransform(kind="float", **ones(33), tail=Tail(slope=np.ones(4, np.float32))),
            "slope must have one value",
        ),
    ],
)
def test_bad_tails(transform: OutputTransform, message: str) -> None:
    case = Case(0, (1, 3, 3, 32), 33, (3, 3))
    with pytest.raises(ConfigError, match=message):
        Conv(native.to_params(case.geometry), case.filters, transform)


def test_tail_bits_of_groups_that_share_words_are_refused() -> None:
    case = Case(0, (1, 3, 3, 64), 66, (3, 3), groups=2)
    with pytest.raises(ConfigError, match="only where groups fill whole words, found 33 channels a group"):
        Conv(
            native.to_params(case.geometry),
            case.filters,
            OutputTransform(kind="float", **ones(66), tail=Tail(writes_bits=True)),
        )


def test_tail_buffers_are_checked() -> None:
    case = Case(0, (1, 3, 3, 32), 33, (3, 3))
    tail = Tail(adds_residual=True, writes_bits=True)
    conv = Conv(native.to_params(case.geometry), case.filters, OutputTransform(kind="float", **ones(33), tail=tail))
    residual, bits = np.zeros((1, 1, 1, 33), np.float32), np.zeros((1, 1, 1, 2), np.uint32)
    with pytest.raises(ConfigError, match="must be given if the tail has them"):
        conv(case.words, residual=residual)
    with pytest.raises(ConfigError, match=r"residual must be contiguous float32 \(1, 1, 1, 33\)"):
        conv(case.words, residual=residual[..., :32], bits=bits)
    with pytest.raises(ConfigError, match=r"bits must be contiguous uint32 \(1, 1, 1, 2\)"):
        conv(case.words, residual=residual, bits=bits[..., :1])


def test_absurd_padding_is_refused(kernel: str) -> None:
    """Few outputs, but a bordered copy that no machine holds."""
    case = Case(0, (1, 3, 3, 32), 4, (3, 3))
    params = native.to_params(case.geometry)
    params.pad_top = params.pad_left = 2**30
    params.stride_height = params.stride_width = 2**29
    if kernel == "reference":  # copies nothing
        assert Conv(params, case.filters, kernel=kernel)(case.words).shape == (1, 3, 3, 4)
        return
    with pytest.raises(ConfigError, match="the padded input is too large"):
        Conv(params, case.filters, kernel=kernel)


# ---- Packing ----

SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.nan, -np.nan, np.inf, -np.inf, 1e-45, -1e-45, 3e38, -3e38], np.float32)


def awkward_floats(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    values = rng.standard_normal(shape).astype(np.float32)
    some = rng.random(shape) < 0.4
    values[some] = rng.choice(SPECIAL, int(some.sum()))
    return values


@pytest.mark.parametrize("channels", CHANNELS)
def test_pack_nhwc(kernel: str, channels: int) -> None:
    rng = np.random.default_rng(channels)
    values = awkward_floats(rng, 3, 5, channels)
    assert np.array_equal(native.pack_nhwc(values, kernel=kernel), pack(values))
    for zero_point in (-128, -5, 0, 3, 127):
        integers = rng.integers(-128, 128, (3, 5, channels)).astype(np.int8)
        packed = native.pack_nhwc(integers, zero_point=zero_point, kernel=kernel)
        assert np.array_equal(packed, pack(integers.astype(np.int32) - zero_point))


@pytest.mark.parametrize("pixels", [1, 15, 16, 17, 63, 64, 65, 100])
@pytest.mark.parametrize("channels", CHANNELS)
def test_pack_nchw(kernel: str, channels: int, pixels: int) -> None:
    values = awkward_floats(np.random.default_rng(pixels), 2, channels, 1, pixels)
    assert np.array_equal(native.pack_nchw(values, kernel=kernel), pack(values.transpose(0, 2, 3, 1)))


@pytest.mark.parametrize("channels", CHANNELS)
def test_unpack(kernel: str, channels: int) -> None:
    signs = random_signs(np.random.default_rng(channels), 3, 5, channels)
    values = native.unpack_nhwc(pack(signs), channels, kernel=kernel)
    assert values.dtype == np.float32 and np.array_equal(values, signs)


@pytest.mark.parametrize("channels", [1, 33, 64, 129])
def test_packing_stays_inside_its_buffers(kernel: str, channels: int) -> None:
    """Values next to the array are negative, so reading them sets bits; words next to the output are poison."""
    library, rng = native.load_library(), np.random.default_rng(channels)
    for source, dtype in ((0, np.float32), (1, np.int8), (2, np.float32)):
        room: NDArray[Any] = np.full(21 * channels + 200, -1, dtype)
        values = room[100:-100]
        values[:] = rng.integers(-2, 3, 21 * channels)
        words = Guarded((21, words_for(channels)), np.uint32)
        arguments = (values.ctypes.data, values.size, 0, 1, 21, channels, words.array.ctypes.data, words.array.size)
        assert library.bnnedge_pack(source, kernel.encode(), *arguments, None, 0) == 0
        pixels = values.reshape(channels, 21).T if source == 2 else values.reshape(21, channels)
        assert np.array_equal(words.array, pack(pixels)) and words.intact()
    words_in = pack(random_signs(rng, 21, channels))
    floats = Guarded((21, channels), np.float32)
    sizes = (words_in.ctypes.data, words_in.size, 21, channels, floats.array.ctypes.data, floats.array.size)
    assert library.bnnedge_unpack(kernel.encode(), *sizes, None, 0) == 0
    assert np.array_equal(floats.array, unpack(words_in, channels)) and floats.intact()


def test_bad_packing() -> None:
    with pytest.raises(ConfigError, match="takes float32 or int8"):
        native.pack_nhwc(np.ones((2, 3)))
    with pytest.raises(ConfigError, match=r"zero_point must be in \[-128, 127\], got 128"):
        native.pack_nhwc(np.ones((2, 3), np.int8), zero_point=128)
    with pytest.raises(ConfigError, match=r"takes float32 \[N, C, H, W\]"):
        native.pack_nchw(np.ones((2, 3), np.float32))
    with pytest.raises(ConfigError, match="33 channels do not take words"):
        native.unpack_nhwc(np.zeros((2, 1), np.uint32), 33)


@pytest.mark.parametrize("channels", [1, 32, 65])
@pytest.mark.parametrize("window", [(1, 1), (2, 2), (3, 3), (3, 2)])
def test_max_pool(channels: int, window: Pair) -> None:
    rng = np.random.default_rng(channels)
    for size, stride, padding in (((4, 6), (2, 2), (0, 0)), ((5, 7), (2, 1), (1, 1)), ((3, 3), (1, 3), (0, 1))):
        if any(p >= k for p, k in zip(padding, window, strict=True)):
            continue
        words = pack(random_signs(rng, 2, *size, channels))
        expected = reference.bmaxpool2d(words, kernel=window, stride=stride, padding=padding)
        assert np.array_equal(
            native.bmaxpool2d(surrounded(words), kernel=window, stride=stride, padding=padding), expected
        )


def test_pool_windows_without_a_pixel_are_refused() -> None:
    library, words = native.load_library(), np.zeros((1, 4, 4, 1), np.uint32)
    names = [field[0] for field in native.BMaxPool2dParams._fields_]
    good = dict(zip(names, (1, 4, 4, 1, 2, 2, 2, 2, 0, 0, 2, 2), strict=True))
    out = np.zeros((1, 2, 2, 1), np.uint32)
    for change in ({}, {"pad_top": 2}, {"stride_height": 4}, {"in_width": 2**31}, {"out_width": 3}, {"words": 0}):
        params = native.BMaxPool2dParams(**{**good, **change})
        status = library.bnnedge_bmaxpool2d(params, words.ctypes.data, 16, out.ctypes.data, 4, None, 0)
        assert status == (1 if change else 0), change


def test_yardsticks() -> None:
    """512 bits an operation triple with AVX-512; kernels without a yardstick say 0."""
    assert native.peak(3, "reference") == 0
    for name in KERNELS:
        assert native.peak(6, name) == 2 * native.peak(3, name)
