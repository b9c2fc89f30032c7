"""``LceQuantize``, ``LceDequantize`` and ``LceBMaxPool2d``: results equal LCE's interpreter and NumPy."""

from __future__ import annotations

import ctypes
import platform
import sys
from typing import Any

import numpy as np
import pytest

from bnnedge.export.targets.tflite.bit_forms import bmaxpool2d_options
from bnnedge.kernels.layout import pack
from bnnedge.kernels.plugins import litert_delegate
from tests.kernels.litert.convolution import CHANNELS, edges
from tests.kernels.litert.running import Array, Pair, check_against, interpreter, invoke, needs_delegate, run
from tests.kernels.litert.writing import SAME, VALID, model_of, requantized

pytestmark = needs_delegate


@pytest.mark.parametrize("channels", CHANNELS)
def test_quantize_float(channels: int) -> None:
    x = np.random.default_rng(channels).standard_normal((2, 3, 5, channels)).astype(np.float32)
    x.flat[::7] = 0.0
    x.flat[1::11] = -0.0
    x.flat[2::13] = np.nan
    x.flat[3::17] = -np.inf
    words = pack(x).view(np.int32)
    check_against(model_of("LceQuantize", b"", x, words), x, words)


@pytest.mark.parametrize("threads", [1, 4])
def test_quantize_denormal_numbers(threads: int) -> None:
    """They are below zero as the bit contract has it; LCE's interpreter flushes them to zero first."""
    x = np.full((1, 64, 64, 33), -1e-45, np.float32)
    words = pack(x).view(np.int32)
    found = run(model_of("LceQuantize", b"", x, words), x, litert_delegate(threads))
    np.testing.assert_array_equal(found, words)


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="sets glibc's x86-64 fenv_t")
def test_threads_treat_denormal_numbers_as_the_caller_does() -> None:
    """Some interpreters flush them to zero while they run, and that is a setting of the calling thread."""
    libm, mode = ctypes.CDLL("libm.so.6"), (ctypes.c_uint32 * 8)()
    x = np.full((1, 512, 256, 33), -1e-45, np.float32)  # large, so that all threads get a share
    data = model_of("LceQuantize", b"", x, pack(x).view(np.int32))
    alone, together = interpreter(data), interpreter(data, litert_delegate(4))
    np.testing.assert_array_equal(invoke(together, x), invoke(alone, x))
    assert libm.fegetenv(mode) == 0
    saved, mode[7] = mode[7], mode[7] | 0x8040  # MXCSR: flush to zero, denormals are zero
    try:
        libm.fesetenv(mode)
        for _ in range(10):
            np.testing.assert_array_equal(invoke(together, x), invoke(alone, x))
    finally:
        mode[7] = saved
        libm.fesetenv(mode)


@pytest.mark.parametrize("shape", [(33,), (2, 33), (4, 3, 64), (1, 2, 3, 4, 40)])
def test_quantize_any_rank(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    check_against(model_of("LceQuantize", b"", x, pack(x).view(np.int32)), x, pack(x).view(np.int32))


@pytest.mark.parametrize("zero_point", [-128, -127, -1, 0, 1, 126, 127])
@pytest.mark.parametrize("channels", [1, 31, 33, 64, 129])
def test_quantize_int8(channels: int, zero_point: int) -> None:
    x = np.random.default_rng(channels).integers(-128, 128, (1, 4, 5, channels)).astype(np.int8)
    x.flat[::5] = zero_point
    words = pack(np.where(x.astype(np.int32) < zero_point, -1, 1)).view(np.int32)
    check_against(requantized(model_of("LceQuantize", b"", x, words), input=(0.1, zero_point)), x, words)


@pytest.mark.parametrize("channels", [1, 31, 33, 64, 129])
def test_bool_both_ways(channels: int) -> None:
    x = np.random.default_rng(channels).integers(0, 2, (1, 4, 5, channels)).astype(np.bool_)
    words = pack(np.where(x, 1, -1)).view(np.int32)
    check_against(model_of("LceQuantize", b"", x, words), x, words)
    check_against(model_of("LceDequantize", b"", words, x), words, x)


@pytest.mark.parametrize("channels", CHANNELS)
def test_dequantize_float(channels: int) -> None:
    signs = np.random.default_rng(channels).choice([-1, 1], (2, 3, 5, channels)).astype(np.float32)
    words = pack(signs).view(np.int32)
    check_against(model_of("LceDequantize", b"", words, signs), words, signs)


@pytest.mark.parametrize(
    ("scale", "zero_point", "plus", "minus"),
    [(0.5, 0, 2, -2), (0.4, 10, 13, 7), (0.01, 100, 127, 0), (2.5, 0, 0, 0), (1.0, -128, -127, -128)],
)
def test_dequantize_int8(scale: float, zero_point: int, plus: int, minus: int) -> None:
    signs = np.random.default_rng(0).choice([-1, 1], (1, 3, 5, 33))
    words, wanted = pack(signs).view(np.int32), np.where(signs > 0, plus, minus).astype(np.int8)
    data = requantized(model_of("LceDequantize", b"", words, wanted), output=(scale, zero_point))
    check_against(data, words, wanted)


@pytest.mark.parametrize("channels", [1, 33, 64, 129])
@pytest.mark.parametrize("padding", [SAME, VALID])
def test_max_pool(padding: int, channels: int) -> None:
    rng = np.random.default_rng(channels)
    sizes: list[tuple[Pair, Pair, Pair]] = [
        ((2, 2), (2, 2), (4, 6)), ((3, 3), (2, 2), (7, 8)), ((3, 2), (1, 3), (5, 5)), ((1, 1), (1, 1), (1, 1)),
        ((5, 5), (3, 2), (5, 5)), ((2, 2), (5, 7), (4, 6)),
    ]  # fmt: skip
    if padding == SAME:
        sizes += [((3, 3), (2, 2), (2, 2)), ((5, 4), (1, 1), (2, 1))]
    for kernel, stride, size in sizes:
        signs = rng.choice([-1, 1], (2, *size, channels), p=[0.8, 0.2]).astype(np.int8)
        axes = zip(size, kernel, stride, (1, 1), strict=True)
        (top, bottom, rows), (left, right, columns) = (edges(*axis, padding) for axis in axes)
        around = ((0, 0), (top, bottom), (left, right), (0, 0))
        padded: Array = np.pad(signs, around, constant_values=-1)
        view: Any = np.lib.stride_tricks.sliding_window_view
        windows = view(padded, kernel, axis=(1, 2))
        strided = windows[:, :: stride[0], :: stride[1]][:, :rows, :columns]
        words, wanted = pack(signs).view(np.int32), pack(strided.max(axis=(-2, -1))).view(np.int32)
        data = model_of("LceBMaxPool2d", bmaxpool2d_options(kernel, stride, padding), words, wanted)
        check_against(data, words, wanted)
