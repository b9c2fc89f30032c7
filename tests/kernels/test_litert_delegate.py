"""The LiteRT delegate: results equal LCE's interpreter and the arithmetic written out below; nothing crashes."""

from __future__ import annotations

import ctypes
import itertools
import platform
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bnnedge.errors import ConfigError, MissingDependencyError
from bnnedge.export.passes import optimize
from bnnedge.export.runtimes import lce as lce_module
from bnnedge.export.runtimes.lce import Lce
from bnnedge.export.runtimes.litert import LiteRt
from bnnedge.export.targets.tflite.bit_forms import bmaxpool2d_options
from bnnedge.export.targets.tflite.reader import parse_model
from bnnedge.export.targets.tflite.target import LceTarget
from bnnedge.export.targets.tflite.writer import ABSENT, TfliteWriter, schema, serialize
from bnnedge.export.trace import trace
from bnnedge.kernels import native, plugins
from bnnedge.kernels.layout import WORD_BITS, pack, words_for
from bnnedge.kernels.plugins import litert_delegate
from bnnedge.layers.deploy import deploy
from bnnedge.methods import METHODS
from bnnedge.models import MODELS
from bnnedge.models.create import create_model

Array = NDArray[Any]
Pair = tuple[int, int]
SAME, VALID = 0, 1
NONE, RELU, RELU_N1_TO_1, RELU6, TANH = range(5)

unavailable = plugins.unavailable(plugins.LITERT_DELEGATE) or LiteRt.unavailable()
pytestmark = pytest.mark.skipif(unavailable is not None, reason=str(unavailable))
needs_lce = pytest.mark.skipif(Lce.unavailable() is not None, reason=str(Lce.unavailable()))


# ---- Running ----


def interpreter(data: bytes, delegate: Any = None) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_content=data, experimental_delegates=[delegate or litert_delegate()])


def invoke(loaded: Any, x: Array) -> Array:
    """Run with the outputs of the last run overwritten."""
    (entry,), (result,) = loaded.get_input_details(), loaded.get_output_details()
    if tuple(entry["shape"]) != x.shape:
        loaded.resize_tensor_input(entry["index"], x.shape)
    loaded.allocate_tensors()
    loaded.set_tensor(entry["index"], x)
    loaded.tensor(result["index"])()[...] = 1  # a value that no result is full of
    loaded.invoke()
    return cast(Array, loaded.get_tensor(result["index"]))


def run(data: bytes, x: Array, delegate: Any = None) -> Array:
    return invoke(interpreter(data, delegate), x)


def run_in_lce(data: bytes, x: Array, kernel: str = "reference") -> Array:
    extension = lce_module._extension()
    loaded = extension.LiteInterpreter(data, 1, kernel == "reference", kernel == "indirect", False)
    return cast(Array, loaded.predict([x])[0])


def model_of(op: str, options: bytes, entry: Array, result: Array, constants: Sequence[Array | None] = ()) -> bytes:
    """A file of one operator; int8 tensors get scale 1 and zero point 0 (see ``requantized``)."""
    writer = TfliteWriter()
    source = writer.tensor("input", entry.shape, cast(Any, entry.dtype.name))
    weights = [ABSENT if c is None else writer.constant(f"constant{i}", c) for i, c in enumerate(constants)]
    target = writer.tensor("output", result.shape, cast(Any, result.dtype.name))
    writer.custom(op, [source, *weights], target, options)
    return requantized(writer.finish([source], [target], {}), input=(1.0, 0), output=(1.0, 0))


def requantized(data: bytes, **parameters: tuple[float, int]) -> bytes:
    raw = parse_model(data).raw
    for tensor in raw.subgraphs[0].tensors:
        if tensor.type == schema().TensorType.INT8 and tensor.name.decode() in parameters:
            scale, zero_point = parameters[tensor.name.decode()]
            tensor.quantization = schema().QuantizationParametersT(scale=[scale], zeroPoint=[zero_point])
    return serialize(raw)


def flexbuffer(**values: int) -> bytes:
    from flatbuffers import flexbuffers

    builder = flexbuffers.Builder()
    with builder.Map():
        for key, value in values.items():
            builder.Int(key, value)
    return bytes(builder.Finish())


# ---- One binary convolution ----


@dataclass(frozen=True)
class Case:
    channels: int = 64
    outputs: int = 5
    size: Pair = (5, 6)
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    padding: int = SAME
    pad_values: int = 0
    activation: int = NONE
    groups: int = 1
    batch: int = 1
    kind: str = "float32"
    scale: float = 0.37
    zero_point: int = -3

    @property
    def is_zero_padded(self) -> bool:
        return self.padding == SAME and self.pad_values == 0

    @property
    def fan_in(self) -> int:
        return self.kernel[0] * self.kernel[1] * self.channels // self.groups


@dataclass(frozen=True)
class Parameters:
    signs: NDArray[np.int8]
    weight: NDArray[np.int8]
    gamma: NDArray[np.float32]
    beta: NDArray[np.float32]
    tau: NDArray[np.int32]

    @classmethod
    def of(cls, case: Case) -> Parameters:
        rng = np.random.default_rng([case.channels, case.outputs, case.groups])
        fan_in = case.fan_in
        gamma = rng.standard_normal(case.outputs).astype(np.float32)
        gamma[0] = 0.0
        tau = rng.integers(fan_in // 2 - 5, fan_in // 2 + 5, case.outputs).astype(np.int32)
        tau[-1] = (np.iinfo(np.int32).min, np.iinfo(np.int32).max)[case.channels % 2]
        return cls(
            signs=rng.choice([-1, 1], (case.batch, *case.size, case.channels)).astype(np.int8),
            weight=rng.choice([-1, 1], (case.outputs, *case.kernel, case.channels // case.groups)).astype(np.int8),
            gamma=gamma,
            beta=rng.standard_normal(case.outputs).astype(np.float32),
            tau=tau,
        )


def edges(size: int, kernel: int, stride: int, dilation: int, padding: int) -> tuple[int, int, int]:
    """(pixels before, pixels after, windows) by TensorFlow's rule."""
    extent = (kernel - 1) * dilation + 1
    if padding == VALID:
        return 0, 0, (size - extent) // stride + 1
    count = -(-size // stride)
    total = max((count - 1) * stride + extent - size, 0)
    return total // 2, total - total // 2, count


def doubled_popcounts(case: Case, p: Parameters) -> NDArray[np.int64]:
    """K - s, s the convolution of signs with 0 or +1 around the image."""
    axes = zip(case.size, case.kernel, case.stride, case.dilation, strict=True)
    (top, bottom, rows), (left, right, columns) = (edges(*axis, case.padding) for axis in axes)
    around = ((0, 0), (top, bottom), (left, right), (0, 0))
    padded = np.pad(p.signs.astype(np.int64), around, constant_values=case.pad_values)
    sums = np.zeros((case.batch, rows, columns, case.outputs), np.int64)
    per_group, out_per_group = case.channels // case.groups, case.outputs // case.groups
    for group, ky, kx in itertools.product(range(case.groups), range(case.kernel[0]), range(case.kernel[1])):
        y, x = ky * case.dilation[0], kx * case.dilation[1]
        taps = padded[:, y :: case.stride[0], x :: case.stride[1]][:, :rows, :columns]
        outputs = slice(group * out_per_group, (group + 1) * out_per_group)
        taps = taps[..., group * per_group : (group + 1) * per_group]
        sums[..., outputs] += taps @ p.weight[outputs, ky, kx].astype(np.int64).T
    return case.fan_in - sums


def expected(case: Case, p: Parameters) -> Array:
    """LCE's arithmetic in its order: float factors formed in double, one float product, one float sum."""
    doubled, k = doubled_popcounts(case, p), case.fan_in
    if case.kind == "int32":
        return pack(np.where(doubled > 2 * p.tau.astype(np.int64), -1, 1)).view(np.int32)
    low, high = {NONE: (-k, k), RELU: (0, k), RELU_N1_TO_1: (-1, 1), RELU6: (0, 6)}[case.activation]
    is_int8 = case.kind == "int8"
    scale = float(np.float32(case.scale)) if is_int8 else 1.0
    gamma, beta = p.gamma.astype(np.float64), p.beta.astype(np.float64)
    multiplier = (-gamma / scale).astype(np.float32)
    bias = ((beta + k * gamma) / scale + (case.zero_point if is_int8 else 0)).astype(np.float32)
    values = np.clip(doubled, k - high, k - low).astype(np.float32) * multiplier + bias
    if not is_int8:
        return np.asarray(values)
    half_away = np.trunc(values + np.copysign(np.float32(0.5), values))
    return np.asarray(np.clip(half_away, -128, 127), np.int8)


def conv_options(case: Case) -> dict[str, int]:
    return {
        "channels_in": case.channels,
        "dilation_height_factor": case.dilation[0],
        "dilation_width_factor": case.dilation[1],
        "fused_activation_function": case.activation,
        "pad_values": case.pad_values,
        "padding": case.padding,
        "stride_height": case.stride[0],
        "stride_width": case.stride[1],
    }


def conv_model(case: Case, p: Parameters) -> bytes:
    words = pack(p.weight).view(np.int32)
    channels = words_for(case.outputs) if case.kind == "int32" else case.outputs
    axes = zip(case.size, case.kernel, case.stride, case.dilation, strict=True)
    height, width = (edges(*axis, case.padding)[2] for axis in axes)
    result = np.zeros((case.batch, height, width, channels), case.kind)
    entry = pack(p.signs).view(np.int32)
    # LCE's reference kernel reads gamma even where only thresholds count, if padding is with zeros.
    needs_gamma = case.kind != "int32" or case.is_zero_padded
    floats = [p.gamma, p.beta] if needs_gamma else [None, None]
    constants = [words, *floats, p.tau if case.kind == "int32" else None]
    data = model_of("LceBconv2d", flexbuffer(**conv_options(case)), entry, result, constants)
    return requantized(data, output=(case.scale, case.zero_point))


def check_conv(case: Case, delegate: Any = None) -> None:
    p = Parameters.of(case)
    data, x = conv_model(case, p), pack(p.signs).view(np.int32)
    found = run(data, x, delegate)
    np.testing.assert_array_equal(found, expected(case, p), err_msg=str(case))
    lce_is_exact = not case.is_zero_padded or (case.channels // case.groups) % 2 == 0
    if Lce.unavailable() is None and lce_is_exact:
        np.testing.assert_array_equal(found, run_in_lce(data, x), err_msg=f"LCE: {case}")


KINDS = ["float32", "int8", "int32"]
PADDINGS = [(VALID, 0), (SAME, 0), (SAME, 1)]
CHANNELS = [1, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129]
GEOMETRIES: dict[str, dict[str, Any]] = {
    "1x1": {"size": (1, 1), "kernel": (1, 1)},
    "3x3": {},
    "3x3 on 7x7": {"size": (7, 7)},
    "stride 2 on even": {"size": (8, 6), "stride": (2, 2)},
    "stride 2 on odd": {"size": (7, 5), "stride": (2, 2)},
    "1x1 stride 2": {"size": (6, 7), "kernel": (1, 1), "stride": (2, 2)},
    "stride beyond the map": {"size": (6, 7), "stride": (9, 1)},
    "dilation": {"size": (7, 8), "dilation": (2, 2)},
    "uneven": {"size": (9, 8), "kernel": (2, 3), "stride": (2, 3), "dilation": (3, 1)},
    "5x5": {"size": (6, 5), "kernel": (5, 5)},
}
BEYOND: dict[str, dict[str, Any]] = {  # SAME only: the filter reaches over the whole map
    "3x3 on 1x1": {"size": (1, 1)},
    "3x3 on 2x2": {"size": (2, 2)},
    "7x7 on 3x2": {"size": (3, 2), "kernel": (7, 7)},
    "dilated 3x3 on 4x4": {"size": (4, 4), "dilation": (3, 4)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*GEOMETRIES, *BEYOND])
def test_convolution(name: str, kind: str) -> None:
    geometry = {**GEOMETRIES, **BEYOND}[name]
    paddings = [p for p in PADDINGS if name in GEOMETRIES or p[0] == SAME]
    for channels, (padding, pad_values) in itertools.product(CHANNELS, paddings):
        case = Case(channels=channels, kind=kind, padding=padding, pad_values=pad_values, **geometry)
        check_conv(replace(case, outputs=1 + (channels + 3) % 7))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [1, 8, 16, 31, 32, 33, 64, 65, 129])
def test_output_channels_and_batches(outputs: int, kind: str) -> None:
    for padding, pad_values in PADDINGS:
        check_conv(Case(outputs=outputs, kind=kind, padding=padding, pad_values=pad_values, batch=3))


@pytest.mark.parametrize("activation", [NONE, RELU, RELU_N1_TO_1, RELU6])
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_activations(kind: str, activation: int) -> None:
    for (padding, pad_values), channels in itertools.product(PADDINGS, (2, 33, 96)):
        check_conv(Case(channels, 17, kind=kind, activation=activation, padding=padding, pad_values=pad_values))
    check_conv(Case(2, 17, kernel=(1, 1), kind=kind, activation=activation))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "outputs", "groups"), [(64, 2, 2), (64, 64, 2), (128, 12, 4), (192, 66, 3)])
def test_groups(channels: int, outputs: int, groups: int, kind: str) -> None:
    for padding, pad_values in PADDINGS:
        case = Case(channels, outputs, kind=kind, padding=padding, pad_values=pad_values, groups=groups)
        check_conv(case)
        check_conv(replace(case, stride=(2, 2), size=(6, 6), dilation=(2, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kernel_and_number_of_threads(kind: str) -> None:
    with pytest.raises(ConfigError) as refused:
        litert_delegate(kernel="?")
    names = str(refused.value).partition("known: ")[2].split(", ")
    assert names[-2:] == ["portable", "reference"]
    case = Case(channels=96, outputs=70, size=(14, 15), kind=kind, batch=2)
    for kernel, threads in itertools.product(names, (1, 2, 5)):
        for padding, pad_values in PADDINGS:
            padded = replace(case, padding=padding, pad_values=pad_values)
            p = Parameters.of(padded)
            delegate = litert_delegate(threads, kernel=kernel)
            found = run(conv_model(padded, p), pack(p.signs).view(np.int32), delegate)
            np.testing.assert_array_equal(found, expected(padded, p), err_msg=f"{kernel}, {threads} threads")


@needs_lce
@pytest.mark.parametrize("kernel", ["default", "indirect"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kernel_of_lce(kind: str, kernel: str) -> None:
    for channels, (padding, pad_values) in itertools.product(CHANNELS, ((VALID, 0), (SAME, 1))):
        case = Case(channels, 37, kind=kind, padding=padding, pad_values=pad_values, stride=(2, 1))
        p = Parameters.of(case)
        data, x = conv_model(case, p), pack(p.signs).view(np.int32)
        np.testing.assert_array_equal(run(data, x), run_in_lce(data, x, kernel), err_msg=str(case))


@needs_lce
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_random_convolutions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(250):
        groups = int(rng.choice([1, 1, 1, 2, 3]))
        channels = int(rng.integers(1, 300)) if groups == 1 else groups * WORD_BITS * int(rng.integers(1, 4))
        kernel, dilation = [tuple(int(v) for v in rng.integers(1, high, 2)) for high in (6, 4)]
        padding, pad_values = PADDINGS[rng.integers(3)]
        low = [(k - 1) * d + 1 if padding == VALID else 1 for k, d in zip(kernel, dilation, strict=True)]
        check_conv(
            Case(
                channels=channels,
                outputs=groups * int(rng.integers(1, 70)),
                size=(low[0] + int(rng.integers(0, 9)), low[1] + int(rng.integers(0, 9))),
                kernel=cast(Pair, kernel),
                stride=(int(rng.integers(1, 4)), int(rng.integers(1, 4))),
                dilation=cast(Pair, dilation),
                padding=padding,
                pad_values=pad_values,
                activation=int(rng.integers(4)),
                groups=groups,
                batch=int(rng.integers(1, 3)),
                kind=KINDS[rng.integers(3)],
                scale=float(rng.uniform(0.01, 2.0)),
                zero_point=int(rng.integers(-128, 128)),
            ),
            litert_delegate(int(rng.integers(1, 3))),
        )


# ---- The other operators ----


def check_against(data: bytes, x: Array, wanted: Array) -> None:
    found = run(data, x)
    np.testing.assert_array_equal(found, wanted)
    if Lce.unavailable() is None:
        np.testing.assert_array_equal(found, run_in_lce(data, x))


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


# ---- Networks ----


def chain(batch: int = 1) -> tuple[bytes, list[tuple[str, Array]]]:
    """float -> bits -> conv (bits) -> pool -> conv (float) -> bits -> float: one partition, private tensors inside."""
    rng = np.random.default_rng(3)
    writer = TfliteWriter()
    first = pack(rng.choice([-1, 1], (40, 3, 3, 33))).view(np.int32)
    second = pack(rng.choice([-1, 1], (7, 3, 3, 40))).view(np.int32)
    tau = rng.integers(140, 158, 40).astype(np.int32)
    gamma, beta = (rng.standard_normal(7).astype(np.float32) for _ in range(2))
    valid = Case(channels=33, padding=VALID)
    image = writer.tensor("image", (batch, 9, 9, 33))
    bits = writer.custom("LceQuantize", [image], writer.tensor("bits", (batch, 9, 9, 2), "int32"))
    hidden = writer.tensor("hidden", (batch, 7, 7, 2), "int32")
    constants = [writer.constant("first", first), ABSENT, ABSENT, writer.constant("tau", tau)]
    writer.custom("LceBconv2d", [bits, *constants], hidden, flexbuffer(**conv_options(valid)))
    pooled = writer.tensor("pooled", (batch, 4, 4, 2), "int32")
    writer.custom("LceBMaxPool2d", [hidden], pooled, bmaxpool2d_options((3, 3), (2, 2), SAME))
    sums = writer.tensor("sums", (batch, 4, 4, 7))
    constants = [writer.constant("second", second), writer.constant("gamma", gamma), writer.constant("beta", beta)]
    same = flexbuffer(**conv_options(Case(channels=40)))
    writer.custom("LceBconv2d", [pooled, *constants, ABSENT], sums, same)
    signs = writer.custom("LceQuantize", [sums], writer.tensor("signs", (batch, 4, 4, 1), "int32"))
    result = writer.custom("LceDequantize", [signs], writer.tensor("result", (batch, 4, 4, 7)))
    return writer.finish([image], [result], {}), [("sums", sums), ("bits", bits)]  # type: ignore[list-item]


def image(batch: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((batch, 9, 9, 33)).astype(np.float32)


def test_neighbours_become_one_node() -> None:
    loaded = interpreter(chain()[0])
    loaded.allocate_tensors()
    names = [op["op_name"] for op in loaded._get_ops_details()]
    assert names.count("DELEGATE") == 1


@needs_lce
def test_chain_and_its_inner_tensors() -> None:
    data, inner = chain()
    for tapped in ((), *((index,) for _, index in inner)):
        raw = parse_model(data).raw
        raw.subgraphs[0].outputs = [*tapped, *raw.subgraphs[0].outputs]
        changed = serialize(raw)
        loaded = interpreter(changed)
        for seed in range(3):
            x = image(1, seed)
            loaded.allocate_tensors()
            loaded.set_tensor(loaded.get_input_details()[0]["index"], x)
            loaded.invoke()
            extension = lce_module._extension().LiteInterpreter(changed, 1, True, False, False)
            for detail, wanted in zip(loaded.get_output_details(), extension.predict([x]), strict=True):
                np.testing.assert_array_equal(loaded.get_tensor(detail["index"]), wanted)


def test_batches_are_resized() -> None:
    data, _ = chain()
    loaded = interpreter(data)
    singles = {seed: run(data, image(1, seed)) for seed in range(4)}
    assert len({one.tobytes() for one in singles.values()}) == 4
    for seeds in ([0, 1, 2, 3], [2], [3, 3, 0], [1, 2]):
        batch = np.concatenate([image(1, seed) for seed in seeds])
        found = invoke(loaded, batch)
        np.testing.assert_array_equal(found, np.concatenate([singles[seed] for seed in seeds]))


def test_images_are_resized() -> None:
    """The padding of SAME changes with the size, so the convolution is prepared anew."""
    case = Case(size=(8, 8), stride=(2, 2))
    loaded = interpreter(conv_model(case, Parameters.of(case)))
    for size in ((8, 8), (7, 8), (8, 8), (9, 5), (2, 1), (6, 6)):
        resized = replace(case, size=size)
        p = Parameters.of(resized)
        p = replace(p, **{name: getattr(Parameters.of(case), name) for name in ("weight", "gamma", "beta")})
        np.testing.assert_array_equal(invoke(loaded, pack(p.signs).view(np.int32)), expected(resized, p))


def test_interpreters_in_threads_share_a_delegate_or_not() -> None:
    data, _ = chain()
    wanted = [run(data, image(4, seed)) for seed in range(4)]
    shared = litert_delegate(threads=2)
    failures: list[str] = []

    def work(number: int) -> None:
        loaded = interpreter(data, shared if number % 2 else litert_delegate(threads=2))
        for repeat in range(30):
            seed = (number + repeat) % 4
            if not np.array_equal(invoke(loaded, image(4, seed)), wanted[seed]):
                failures.append(f"thread {number}, repeat {repeat}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.fixture(scope="module", params=itertools.product(MODELS, ["ste", "rbnn"]), ids="-".join)
def network(request: pytest.FixtureRequest) -> bytes:
    name, method_name = request.param
    torch.manual_seed(0)
    model = create_model(name, num_classes=10, in_channels=3, image_size=32)
    method = METHODS.load(method_name)
    method(method.Options()).attach(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.normal_()
                module.bias.normal_()
    return LceTarget().write(optimize(trace(deploy(model), torch.zeros(2, 3, 32, 32))))


@needs_lce
def test_networks_agree_with_lce_in_every_layer(network: bytes) -> None:
    """LCE's float operators are built-in kernels, LiteRT's are XNNPACK's: a sign near zero may turn, and what follows
    it then differs. So integers are compared layer by layer for the same signs."""
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    output, signs = LiteRt.tap(network, x)
    np.testing.assert_allclose(output, LiteRt.open(network, threads=2).run(x), rtol=0, atol=1e-4)
    _, others = Lce.tap(network, x)
    assert list(signs) == list(others) and len(signs) >= 5
    first = next(iter(signs))
    assert np.count_nonzero(signs[first] != others[first]) <= 1e-5 * signs[first].size + 1
    for layer, values in signs.items():
        np.testing.assert_array_equal(LiteRt.integers(network, layer, values), Lce.integers(network, layer, values))


# ---- Glue: builtin operators between those of LCE ----


class GlueGraph:
    """Builtin operators between LceDequantize and LceQuantize, written and computed in numpy side by side."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        self.writer = TfliteWriter()
        self.rng = np.random.default_rng(seed)
        self.x = self.rng.standard_normal(shape).astype(np.float32)
        self.arrays: dict[int, Array] = {}
        self.computed: list[int] = []
        self.entry = self.put(self.x, lambda t: t)
        self.first = self.signs(self.entry)

    def put(self, array: Array, write: Any) -> int:
        name = f"tensor{len(self.arrays)}"
        index = int(write(self.writer.tensor(name, array.shape, cast(Any, array.dtype.name))))
        self.arrays[index] = array
        self.computed.append(index)
        return index

    def signs(self, source: int) -> int:
        """-1 and +1, packed and unpacked."""
        packed = self.bits(source)
        signs = np.where(self.arrays[source] < 0, -1, 1).astype(np.float32)
        return self.put(signs, lambda t: self.custom("LceDequantize", packed, t))

    def custom(self, code: str, source: int, target: int) -> int:
        return self.writer.custom(code, [source], target)

    def constant(self, array: Array) -> int:
        index = self.writer.constant(f"constant{len(self.arrays)}", array)
        self.arrays[index] = array
        return index

    def builtin(self, code: str, inputs: list[int], array: Array, **options: Any) -> int:
        return self.put(array, lambda t: self.writer.builtin(code, inputs, t, **options))

    def add(self, a: int, b: int, code: str = "ADD", activation: int = NONE) -> int:
        with np.errstate(invalid="ignore", over="ignore"):
            x, y = self.arrays[a], self.arrays[b]
            result = x - y if code == "SUB" else x * y if code == "MUL" else x + y
        return self.builtin(code, [a, b], clipped(result, activation), fusedActivationFunction=activation)

    def clip(self, source: int, activation: int = RELU_N1_TO_1) -> int:
        code = {RELU: "RELU", RELU_N1_TO_1: "RELU_N1_TO_1", RELU6: "RELU6"}[activation]
        return self.builtin(code, [source], clipped(self.arrays[source], activation))

    def pointwise(
        self, source: int, outputs: int, stride: Pair = (1, 1), activation: int = NONE, has_bias: bool = True
    ) -> int:
        """A float convolution of one pixel: products are added to the bias in order, each with one rounding."""
        x = self.arrays[source][:, :: stride[0], :: stride[1]]
        weight = self.rng.standard_normal((outputs, 1, 1, x.shape[3])).astype(np.float32)
        bias = self.rng.standard_normal(outputs).astype(np.float32) if has_bias else np.zeros(outputs, np.float32)
        total = np.broadcast_to(bias, (*x.shape[:3], outputs))
        for c in range(x.shape[3]):
            product = np.longdouble(x[..., c, None]) * weight[:, 0, 0, c]  # exact, and its sum nearly so
            total = np.asarray(product + total, np.float32)
        inputs = [source, self.constant(weight), self.constant(bias) if has_bias else ABSENT]
        options = {"strideH": stride[0], "strideW": stride[1], "padding": VALID, "dilationHFactor": 1}
        fused = {"dilationWFactor": 1, "fusedActivationFunction": activation}
        return self.builtin("CONV_2D", inputs, clipped(total, activation), **options, **fused)

    def bound(self, code: str, source: int, number: float, is_swapped: bool = False) -> int:
        x, limit = self.arrays[source], np.float32(number)
        result = np.where(x < limit if code == "MAXIMUM" else x > limit, limit, x)
        inputs = [source, self.constant(np.array([number], np.float32))]
        return self.builtin(code, inputs[::-1] if is_swapped else inputs, result)

    def prelu(self, source: int, slope: Array) -> int:
        x = self.arrays[source]
        with np.errstate(invalid="ignore", over="ignore"):
            result = np.where(x < 0, slope * x, x)
        return self.builtin("PRELU", [source, self.constant(slope.reshape(1, 1, -1))], result)

    def pad(self, source: int, edges: Sequence[Pair]) -> int:
        amounts = self.constant(np.array(edges, np.int32))
        return self.builtin("PAD", [source, amounts], np.pad(self.arrays[source], edges))

    def subsample(self, source: int, steps: Sequence[int]) -> int:
        zeros, strides = self.constant(np.zeros(len(steps), np.int32)), self.constant(np.array(steps, np.int32))
        everything = (1 << len(steps)) - 1
        result = self.arrays[source][tuple(slice(None, None, step) for step in steps)]
        inputs = [source, zeros, zeros, strides]
        return self.builtin("STRIDED_SLICE", inputs, result, beginMask=everything, endMask=everything)

    def gather(self, source: int, indices: Sequence[int], axis: int) -> int:
        listed = self.constant(np.array(indices, np.int32))
        return self.builtin("GATHER", [source, listed], self.arrays[source].take(indices, axis), axis=axis)

    def bits(self, source: int) -> int:
        return self.put(pack(self.arrays[source]).view(np.int32), lambda t: self.custom("LceQuantize", source, t))

    def conv(self, source: int, outputs: int, floats: tuple[Array, Array] | None = None, **fields: Any) -> int:
        """A float convolution of the signs of ``source``; ``floats`` are multiplier and bias."""
        return self.conv_of_bits(self.bits(source), np.where(self.arrays[source] < 0, -1, 1), outputs, floats, **fields)

    def conv_of_bits(
        self, bits: int, signs: Array, outputs: int, floats: tuple[Array, Array] | None = None, **fields: Any
    ) -> int:
        batch, *size, channels = signs.shape
        case = Case(channels=channels, outputs=outputs, size=cast(Pair, tuple(size)), batch=batch, **fields)
        p = replace(Parameters.of(case), signs=signs.astype(np.int8))
        if floats is not None:
            p = replace(p, gamma=floats[0], beta=floats[1])
        constants = [self.constant(c) for c in (pack(p.weight).view(np.int32), p.gamma, p.beta)]
        options = flexbuffer(**conv_options(case))
        with np.errstate(invalid="ignore", over="ignore"):
            result = expected(case, p)
        return self.put(result, lambda t: self.writer.custom("LceBconv2d", [bits, *constants, ABSENT], t, options))

    def zero_padded(self, source: int, outputs: int, edges: Sequence[Pair], stride: Pair, gamma: Array) -> int:
        """3x3, as the exporter writes it: PAD with +1, then a map takes away what the padding adds."""
        signs = np.where(self.arrays[source] < 0, -1, 1)
        padded = self.pad(self.bits(source), edges)
        ones = np.pad(signs, edges, constant_values=1)
        beta = self.rng.standard_normal(outputs).astype(np.float32)
        fields: dict[str, Any] = {"stride": stride, "padding": VALID}
        result = self.conv_of_bits(padded, ones, outputs, (gamma, beta), **fields)
        around = Case(channels=signs.shape[3], outputs=outputs, size=cast(Pair, ones.shape[1:3]), **fields)
        outside = np.pad(np.zeros_like(signs[:1]), edges, constant_values=1)
        added = around.fan_in - doubled_popcounts(around, replace(Parameters.of(around), signs=outside))
        correction = self.constant((-gamma * added).astype(np.float32))
        pair = (correction, result) if outputs % 2 else (result, correction)
        return self.add(*pair)

    def finish(self, *outputs: int) -> bytes:
        return self.writer.finish([self.entry], list(outputs), {})

    def check(self, result: int, taps: Sequence[int] = (), partitions: int = 1, threads: int = 1) -> None:
        """``result`` and ``taps`` leave the graph, all else is private; the signs of ``result`` follow it."""
        outputs = [*taps, self.signs(result)]
        loaded = interpreter(self.finish(*outputs), litert_delegate(threads))
        assert partitions_of(self.finish(*outputs)) == partitions
        for _ in range(2):
            loaded.allocate_tensors()
            loaded.set_tensor(loaded.get_input_details()[0]["index"], self.x)
            for detail in loaded.get_output_details():
                loaded.tensor(detail["index"])()[...] = 77
            loaded.invoke()
            for detail, index in zip(loaded.get_output_details(), outputs, strict=True):
                found, wanted = loaded.get_tensor(detail["index"]), self.arrays[index]
                np.testing.assert_array_equal(found, wanted)
                is_number = ~np.isnan(wanted)
                np.testing.assert_array_equal(np.signbit(found[is_number]), np.signbit(wanted[is_number]))


def clipped(array: Array, activation: int = RELU_N1_TO_1) -> Array:
    """NaN and -0.0 stay themselves, as in XNNPACK."""
    inf = float("inf")
    low, high = {NONE: (-inf, inf), RELU: (0, inf), RELU_N1_TO_1: (-1, 1), RELU6: (0, 6)}[activation]
    raised = np.where(array < low, np.float32(low), array)
    return np.asarray(np.where(raised > high, np.float32(high), raised))


def entering(data: bytes) -> list[list[int]]:
    """The tensors that each partition reads and does not write."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    loaded = Interpreter(
        model_content=data,
        experimental_delegates=[litert_delegate()],
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    loaded.allocate_tensors()
    return [[int(i) for i in op["inputs"]] for op in loaded._get_ops_details() if op["op_name"] == "DELEGATE"]


def partitions_of(data: bytes) -> int:
    return len(entering(data))


SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e38, -3e38, 1 + 2**-23, -1 - 2**-23], np.float32)
BROADCASTS = [
    (2, 3, 4, 33), (1, 3, 4, 33), (3, 4, 33), (33,), (1,), (2, 1, 1, 33), (2, 3, 4, 1), (1, 3, 1, 1), (2, 1, 4, 33),
    (1, 1, 4, 1), (4, 33), (1, 2, 3, 4, 33), (3, 2, 3, 4, 33),
]  # fmt: skip


@pytest.mark.parametrize("activation", [NONE, RELU, RELU_N1_TO_1, RELU6])
@pytest.mark.parametrize("code", ["ADD", "SUB", "MUL"])
def test_glue_arithmetic(code: str, activation: int) -> None:
    for shape, is_swapped, threads in itertools.product(BROADCASTS, (False, True), (1, 3)):
        graph = GlueGraph((2, 3, 4, 33))
        values = (2 * graph.rng.standard_normal(shape)).astype(np.float32)
        values.flat[:: max(1, values.size // 40)] = np.resize(SPECIAL, values.flat[:: max(1, values.size // 40)].shape)
        a, b = graph.first, graph.constant(values)
        total = graph.add(b, a, code, activation) if is_swapped else graph.add(a, b, code, activation)
        graph.check(total, threads=threads)
        graph = GlueGraph((2, 3, 4, 33))
        a, b = graph.first, graph.constant(values)
        total = graph.add(b, a, code, activation) if is_swapped else graph.add(a, b, code, activation)
        graph.check(graph.clip(total), [total], threads=threads)


def test_glue_that_broadcasts_both_ways() -> None:
    graph = GlueGraph((2, 3, 1, 33))
    total = graph.add(graph.first, graph.constant(graph.rng.standard_normal((5, 1)).astype(np.float32)))
    graph.check(graph.add(total, graph.first, "SUB"), [total])


def test_glue_equals_the_interpreters_own() -> None:
    """NaN, infinities and the sign of zero through the same operators in a file without LCE's."""
    a, b = (np.asarray(v, np.float32) for v in np.meshgrid(SPECIAL, SPECIAL))
    shape = (1, len(SPECIAL), len(SPECIAL), 1)

    def stock(build: Any) -> list[Array]:
        writer = TfliteWriter()
        left = writer.tensor("left", shape)
        results = build(writer, left)
        loaded = interpreter(writer.finish([left], results, {}))
        loaded.allocate_tensors()
        loaded.set_tensor(loaded.get_input_details()[0]["index"], a.reshape(shape))
        loaded.invoke()
        return [loaded.get_tensor(detail["index"]) for detail in loaded.get_output_details()]

    def whole(graph: GlueGraph) -> int:
        zero = graph.add(graph.first, graph.constant(-graph.arrays[graph.first]))
        return graph.add(zero, graph.constant(a.reshape(shape)))  # 0 + -0 is 0, all else stays

    def equal(graph: GlueGraph, found: Sequence[int], wanted: list[Array]) -> None:
        graph.check(found[-1], found[:-1])
        for tensor, array in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(graph.arrays[tensor], array)

    for code, activation in itertools.product(("ADD", "SUB", "MUL"), (NONE, RELU, RELU_N1_TO_1, RELU6)):

        def combine(writer: TfliteWriter, left: int, code: str = code, activation: int = activation) -> list[int]:
            right = writer.constant("right", b.reshape(shape))
            total = writer.tensor("total", shape)
            return [writer.builtin(code, [left, right], total, fusedActivationFunction=activation)]

        graph = GlueGraph(shape)
        total = graph.add(whole(graph), graph.constant(b.reshape(shape)), code, activation)
        equal(graph, [total], stock(combine))

    numbers = [-1.5, 0.0, 2.0]
    slope = np.array([-0.25], np.float32)

    def bend(writer: TfliteWriter, left: int) -> list[int]:
        def one(code: str, *constants: Array) -> int:
            inputs = [left, *(writer.constant(f"{code} {i}", c) for i, c in enumerate(constants))]
            return writer.builtin(code, inputs, writer.tensor(code, shape))

        clips = [one(code) for code in ("RELU", "RELU_N1_TO_1", "RELU6")]
        pairs = itertools.product(("MAXIMUM", "MINIMUM"), numbers)
        bounds = [one(code, np.array([number], np.float32)) for code, number in pairs]
        return [*clips, *bounds, one("PRELU", slope.reshape(1, 1, 1))]

    graph = GlueGraph(shape)
    left = whole(graph)
    found = [graph.clip(left, activation) for activation in (RELU, RELU_N1_TO_1, RELU6)]
    found += [graph.bound(code, left, number) for code, number in itertools.product(("MAXIMUM", "MINIMUM"), numbers)]
    equal(graph, [*found, graph.prelu(left, slope)], stock(bend))


@pytest.mark.parametrize("channels", CHANNELS)
def test_glue_that_moves(channels: int) -> None:
    graph = GlueGraph((2, 5, 6, channels))
    padded = graph.pad(graph.first, [(0, 1), (2, 0), (1, 3), (0, 2)])
    thinned = graph.subsample(padded, (1, 2, 3, 1))
    last = graph.subsample(thinned, (2, 9, 1, 2))
    gathered = graph.gather(last, [1, 0, 1, 1], axis=2)
    graph.check(gathered, [padded, last])
    graph = GlueGraph((2, 5, 6, channels))
    graph.check(graph.gather(graph.pad(graph.first, [(0, 0)] * 4), [channels - 1, 0], axis=-1))


def test_glue_pads_packed_bits_with_plus_one() -> None:
    graph = GlueGraph((1, 4, 5, 70))
    packed = graph.bits(graph.entry)
    edges = [(0, 0), (1, 2), (3, 0), (0, 0)]
    padded = graph.pad(packed, edges)
    signs = np.pad(np.where(graph.x < 0, -1, 1), edges, constant_values=1).astype(np.float32)
    graph.check(graph.put(signs, lambda t: graph.custom("LceDequantize", padded, t)), [padded])


@pytest.mark.parametrize("is_tapped", [False, True])
def test_glue_of_constants(is_tapped: bool) -> None:
    """The table of a padding correction is unfolded once, and still there for whom else wants to see it."""
    graph = GlueGraph((3, 4, 5, 33))
    table = graph.constant(graph.rng.standard_normal((1, 2, 3, 33)).astype(np.float32))
    rows = graph.gather(table, [0, 1, 1, 0], axis=1)
    columns = graph.gather(rows, [2, 0, 1, 1, 2], axis=2)
    graph.check(graph.add(graph.first, columns), [rows, columns] if is_tapped else [])


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("seed", range(12))
def test_glue_in_random_graphs(seed: int, threads: int) -> None:
    """Tensors that live long and short, and places in memory that are used again."""
    graph = GlueGraph((2, 16, 15, 40), seed)
    full, thin = [graph.first], [graph.subsample(graph.first, (1, 2, 1, 1))]
    for _ in range(40):
        pool = full if graph.rng.random() < 0.6 else thin
        a, b = (pool[int(graph.rng.integers(len(pool)))] for _ in range(2))
        kind = int(graph.rng.integers(6))
        if kind == 0:
            pool.append(graph.clip(a))
        elif kind == 1:
            pool.append(graph.signs(a))
        elif kind == 2:
            thin.append(graph.subsample(full[-1], (1, 2, 1, 1)))
        elif kind == 3:
            scale = graph.constant(graph.rng.standard_normal((16 if pool is full else 8, 1, 40)).astype(np.float32))
            pool.append(graph.add(a, scale, "SUB"))
        else:
            pool.append(graph.add(a, b, ("ADD", "SUB")[kind - 4], int(graph.rng.choice([NONE, RELU_N1_TO_1]))))
    rest = graph.subsample(full[-1], (1, 2, 1, 1))
    for tensor in thin[::3]:
        rest = graph.add(rest, tensor)
    graph.check(rest, [full[-1]] if seed % 2 else [], threads=threads)


# ---- Operators that join a convolution ----


CONVOLUTIONS: list[dict[str, Any]] = [
    {"padding": SAME, "pad_values": 0}, {"padding": SAME, "pad_values": 1, "activation": RELU6},
    {"kernel": (1, 1), "padding": VALID}, {"padding": SAME, "pad_values": 0, "dilation": (2, 1)},
    {"kernel": (2, 3), "padding": SAME, "pad_values": 1}, {"padding": SAME, "activation": RELU_N1_TO_1},
]  # fmt: skip


def numbers(graph: GlueGraph, shape: tuple[int, ...] | int, is_special: bool = False) -> Array:
    values = (3 * graph.rng.standard_normal(shape)).astype(np.float32)
    if is_special:
        values.flat[::5] = np.resize(SPECIAL, values.flat[::5].shape)
    return values


def one_step(graph: GlueGraph, y: int, maps: list[int]) -> int:
    """A random operator behind ``y``."""
    rng, shape = graph.rng, graph.arrays[y].shape
    activation = int(rng.choice([NONE, NONE, RELU, RELU_N1_TO_1, RELU6]))
    kind = int(rng.integers(7))
    if kind < 2:
        other = maps[int(rng.integers(len(maps)))]
        return graph.add(*((y, other) if kind else (other, y)), activation=activation)
    if kind == 2:
        shape = (shape, shape[1:], (1, 1, *shape[2:]))[int(rng.integers(3))]
        return graph.add(y, graph.constant(numbers(graph, shape, rng.random() < 0.2)), activation=activation)
    if kind == 3:
        return graph.prelu(y, numbers(graph, shape[-1]))
    if kind == 4:
        pair = (y, graph.constant(numbers(graph, shape[-1:])))
        return graph.add(*(pair if rng.random() < 0.7 else pair[::-1]), str(rng.choice(["ADD", "SUB"])), activation)
    if kind == 5:
        return graph.clip(y, int(rng.choice([RELU, RELU_N1_TO_1, RELU_N1_TO_1, RELU6])))
    return graph.bound(*((("MAXIMUM", y, -0.75), ("MINIMUM", y, 1.25))[int(rng.integers(2))]), rng.random() < 0.5)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("seed", range(40))
def test_random_ways_behind_convolutions(seed: int, threads: int) -> None:
    """Residuals, clips, signs and taps anywhere."""
    channels = [31, 32, 33, 64, 70, 1][seed % 6]
    graph = GlueGraph((1 + seed % 2, 5, 6, channels), seed)
    rng, maps = graph.rng, [graph.first]
    for _ in range(7):
        fields = CONVOLUTIONS[int(rng.integers(len(CONVOLUTIONS)))]
        y = graph.conv(maps[-1 - int(rng.integers(min(2, len(maps))))], channels, **fields)
        if rng.random() < 0.2:
            maps.append(y)
        for _ in range(int(rng.integers(5))):
            y = one_step(graph, y, maps)
            if rng.random() < 0.15:
                maps.append(y)
        if rng.random() < 0.3:
            maps.append(graph.signs(graph.add(y, graph.constant(numbers(graph, channels)))))
        maps.append(y)
    taps = [tensor for tensor in graph.computed[1:] if rng.random() < 0.05]
    graph.check(maps[-1], taps if seed % 2 else [], threads=threads)


@pytest.mark.parametrize("order", list(itertools.permutations(["ADD", "PRELU", "SHIFT", "CLIP"])), ids="-".join)
def test_steps_in_any_order(order: Sequence[str]) -> None:
    """Only one of these orders fits the tail of a convolution as a whole."""
    for channels, has_signs in itertools.product((33, 64), (True, False)):
        graph = GlueGraph((2, 5, 6, channels))
        y = graph.conv(graph.first, channels)
        for step in order:
            if step == "ADD":
                y = graph.add(graph.first, y)
            elif step == "PRELU":
                y = graph.prelu(y, numbers(graph, channels))
            elif step == "SHIFT":
                y = graph.add(y, graph.constant(numbers(graph, channels, True)))
            else:
                y = graph.clip(y)
        last = graph.signs(y) if has_signs else graph.conv(y, channels)
        graph.check(graph.add(last, y) if has_signs else last)


def test_signs_before_a_clip_that_leaves_them_or_not() -> None:
    for activation, shift in itertools.product((RELU_N1_TO_1, RELU, RELU6), (None, 1.0)):
        graph = GlueGraph((1, 5, 6, 33))
        y = graph.add(graph.conv(graph.first, 33), graph.first)
        before = y if shift is None else graph.add(y, graph.constant(numbers(graph, 33)), "SUB")
        signs = graph.signs(before)
        graph.check(graph.add(graph.clip(y, activation), signs))


def test_two_readers_of_the_signs() -> None:
    graph = GlueGraph((2, 5, 6, 40))
    y = graph.add(graph.conv(graph.first, 40), graph.first)
    first, second = graph.conv(y, 40), graph.conv(y, 40, kernel=(1, 1))
    graph.check(graph.add(graph.add(first, second), y))


def test_the_sum_of_two_convolutions() -> None:
    for is_swapped in (False, True):
        graph = GlueGraph((2, 8, 7, 33))
        bits = graph.bits(graph.first)
        signs = graph.arrays[graph.first]
        first, second = (graph.conv_of_bits(bits, signs, 70, kernel=k, stride=(2, 2)) for k in ((3, 3), (1, 1)))
        total = graph.add(*((second, first) if is_swapped else (first, second)), activation=RELU_N1_TO_1)
        graph.check(graph.add(graph.conv(total, 70), total))


@pytest.mark.parametrize("channels", [1, 3, 32, 33, 64])
@pytest.mark.parametrize("fields", CONVOLUTIONS, ids=str)
def test_signs_alone(channels: int, fields: dict[str, Any]) -> None:
    """Results that are zero, infinite, not a number or denormal; multipliers of either sign and none."""
    graph = GlueGraph((2, 5, 6, channels))
    fan_in = Case(channels=channels, **{k: v for k, v in fields.items() if k == "kernel"}).fan_in
    integers = graph.rng.integers(-fan_in // 4, fan_in // 4 + 1, 40).astype(np.float32)  # s = -beta: a tie
    plain = (np.resize(np.array([1, -1, 0.37, -0.37, 0.0], np.float32), 40), integers)
    tiny = (np.resize(np.array([1e-38, -1e-40, 1e-45, 3e38], np.float32), 40), np.resize(SPECIAL, 40))
    for floats in (plain, tiny, (plain[0], np.zeros(40, np.float32)), (tiny[0], plain[1])):
        graph.first = graph.signs(graph.conv(graph.first, 40, floats, **fields))
        y = graph.conv(graph.first, 40, floats, **fields)
        y = graph.clip(graph.add(y, graph.constant(numbers(graph, 40))))
        graph.first = graph.signs(y)
    graph.check(graph.first)


@pytest.mark.parametrize("channels", [1, 31, 32, 33, 64])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 3)])
def test_padding_by_another_operator(stride: Pair, channels: int) -> None:
    rng = np.random.default_rng(channels)
    sizes = [(6, 8), (5, 7), (1, 2)]
    for (height, width), batch, edges in itertools.product(sizes, (1, 2), ([(1, 0), (1, 0)], [(1, 1), (2, 1)])):
        graph = GlueGraph((batch, height, width, channels))
        if width + sum(edges[1]) < 3 or height + sum(edges[0]) < 3:
            continue
        around = [(0, 0), *edges, (0, 0)]
        for multiplier in (1.0, 0.31):
            gamma = (multiplier * rng.choice([-1, 1], 37)).astype(np.float32)
            wide = GlueGraph((batch, height, width, channels))
            wide.check(wide.zero_padded(wide.first, 37, around, stride, gamma))
            y = graph.zero_padded(graph.first, channels, around, stride, np.resize(gamma, channels))
            graph.check(graph.add(graph.conv(y, channels), y), [y] if multiplier == 1.0 else [])
            graph = GlueGraph((batch, height, width, channels))


def test_a_map_that_is_no_correction() -> None:
    """Constants that turn signs in some pixels of a border class only, or by too much."""
    for shape in ((1, 5, 6, 33), (5, 6, 33), (1, 1, 6, 33), (1, 5, 1, 1), (2, 5, 6, 33), (2, 1, 1, 33), (1,)):
        graph = GlueGraph((2, 5, 6, 33))
        y = graph.add(graph.conv(graph.first, 33), graph.constant(10 * numbers(graph, shape)))
        graph.check(graph.signs(y))
        graph.check(graph.conv(y, 33))


def test_fused_operators_are_resized() -> None:
    graph = GlueGraph((1, 5, 6, 33))
    y = graph.add(graph.conv(graph.first, 33), graph.first, activation=RELU_N1_TO_1)
    z = graph.zero_padded(y, 33, [(0, 0), (1, 1), (1, 1), (0, 0)], (1, 1), np.ones(33, np.float32))
    data = graph.finish(graph.signs(graph.add(graph.conv(z, 33), y)))
    loaded = interpreter(data)
    images = np.random.default_rng(1).standard_normal((4, 5, 6, 33)).astype(np.float32)
    singles = [run(data, images[i : i + 1]) for i in range(4)]
    for chosen in ([0, 1, 2, 3], [2], [3, 3, 0], [1]):
        np.testing.assert_array_equal(invoke(loaded, images[chosen]), np.concatenate([singles[i] for i in chosen]))


@pytest.mark.parametrize("name", ["resnet18_1w1a", "resnet20_1w1a"])
def test_networks_are_the_same_fused_and_not(name: str) -> None:
    """Nothing is fused that also leaves the graph."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=10, in_channels=3, image_size=32)
    method = METHODS.load("ste")
    method(method.Options()).attach(model)
    data = LceTarget().write(optimize(trace(deploy(model), torch.zeros(2, 3, 32, 32))))
    raw = parse_model(data).raw
    inner = [int(op.outputs[0]) for op in raw.subgraphs[0].operators[:-4]]
    raw.subgraphs[0].outputs = [*raw.subgraphs[0].outputs, *inner]
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    tapped = interpreter(serialize(raw))
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal((1, 32, 32, 3)).astype(np.float32)
        tapped.allocate_tensors()
        tapped.set_tensor(tapped.get_input_details()[0]["index"], x)
        tapped.invoke()
        for threads in (1, 2):
            found = run(data, x, litert_delegate(threads))
            np.testing.assert_array_equal(found, tapped.get_tensor(tapped.get_output_details()[0]["index"]))


def test_only_what_lies_behind_binary_operators_is_claimed() -> None:
    def partitions(between: str, activation: int = NONE) -> int:
        graph = GlueGraph((1, 4, 5, 33))
        first = graph.first
        graph.builtin(between, [first, first], graph.arrays[first] * 2, fusedActivationFunction=activation)
        return partitions_of(graph.finish(graph.signs(list(graph.arrays)[-1])))

    assert partitions("ADD") == partitions("SUB") == partitions("ADD", RELU_N1_TO_1) == partitions("SUB", RELU6) == 1
    assert partitions("ADD", TANH) == partitions("MUL") == 2

    writer = TfliteWriter()
    x, doubled, sums, result = (writer.tensor(name, (1, 4, 5, 33)) for name in ("x", "doubled", "sums", "result"))
    bits = writer.tensor("bits", (1, 4, 5, 2), "int32")
    writer.builtin("ADD", [x, x], doubled)
    writer.custom("LceDequantize", [writer.custom("LceQuantize", [doubled], bits)], sums)
    writer.builtin("ADD", [sums, x], result)
    assert entering(writer.finish([x], [result], {})) == [[x, doubled]]


def test_a_convolution_between_binary_ones_splits_them_once() -> None:
    """What follows joins the binary operators again; only what adds its result to theirs stays with it."""
    graph = GlueGraph((1, 4, 5, 33))
    left = graph.conv(graph.first, 33)
    square = graph.builtin("MUL", [graph.first, graph.first], graph.arrays[graph.first] ** 2)
    total = graph.clip(graph.add(left, square))
    after = graph.clip(graph.add(graph.conv(total, 33), total))
    last = graph.clip(graph.add(graph.conv(after, 33), after))
    _, second = entering(graph.finish(last))
    assert [tensor for tensor in second if tensor in graph.computed] == [total]
    graph.check(last, partitions=2)


def test_glue_that_waits_for_another_operator_is_left_alone() -> None:
    """Claimed, x - MEAN(x) would only move from one delegate to the other."""
    graph = GlueGraph((1, 4, 5, 33))
    square = graph.builtin("MUL", [graph.first, graph.first], graph.arrays[graph.first] ** 2)
    difference = graph.add(graph.first, square, "SUB")
    assert entering(graph.finish(graph.signs(difference))) == [[graph.entry], [difference]]
    graph = GlueGraph((1, 4, 5, 33))
    square = graph.builtin("MUL", [graph.entry, graph.entry], graph.x**2)
    difference = graph.add(graph.first, square, "SUB")
    assert entering(graph.finish(graph.signs(difference))) == [[graph.entry], [graph.first, square]]


def test_residual_networks_are_one_partition() -> None:
    sizes = {"resnet18_1w1a": [32, 128] if multiplies_in_float() else [32], "resnet20_1w1a": [32]}
    for name, size in [(name, size) for name, several in sizes.items() for size in several]:
        model = create_model(name, num_classes=10, in_channels=3, image_size=size)
        method = METHODS.load("ste")
        method(method.Options()).attach(model)
        assert partitions_of(LceTarget().write(optimize(trace(deploy(model), torch.zeros(2, 3, size, size))))) == 1


def multiplies_in_float() -> bool:
    """Whether the fastest kernel here has a part for float convolutions of one pixel."""
    return native.available() and native.kernel_names()[0] not in ("popcnt", "portable", "reference")


needs_float_kernel = pytest.mark.skipif(not multiplies_in_float(), reason="needs AVX2 with FMA, or NEON")


@needs_float_kernel
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize(
    ("channels", "outputs", "activation", "has_bias"),
    [(1, 1, NONE, True), (33, 17, RELU, False), (64, 130, RELU_N1_TO_1, True), (31, 64, RELU6, True)],
)
def test_float_convolutions_of_one_pixel(
    channels: int, outputs: int, activation: int, has_bias: bool, stride: Pair, threads: int
) -> None:
    """Alone, and between a binary convolution and the next signs, where its result is added to another's."""
    graph = GlueGraph((2, 7, 9, channels))
    before = graph.clip(graph.conv(graph.first, channels))
    result = graph.pointwise(before, outputs, stride, activation, has_bias)
    graph.check(result, [result], threads=threads)
    graph = GlueGraph((2, 7, 9, channels))
    before = graph.clip(graph.conv(graph.first, channels))
    beside = graph.conv(before, outputs, stride=stride)
    total = graph.add(beside, graph.pointwise(before, outputs, stride, activation, has_bias))
    after = graph.clip(total)
    graph.check(graph.add(graph.conv(after, outputs), after), threads=threads)


@needs_float_kernel
def test_float_convolutions_equal_xnnpacks() -> None:
    graph = GlueGraph((1, 12, 14, 64))
    before = graph.clip(graph.conv(graph.first, 64))
    data = graph.finish(graph.pointwise(before, 128, (2, 2)))
    stock = litert_delegate(kernel="portable")  # which has none of its own
    np.testing.assert_array_equal(run(data, graph.x), run(data, graph.x, stock))


def test_other_float_convolutions_are_left_alone() -> None:
    def partitions(*filter_shape: int, activation: int = NONE) -> int:
        graph = GlueGraph((1, 4, 5, 32))
        filters, bias = (graph.constant(np.ones(shape, np.float32)) for shape in (filter_shape, filter_shape[:1]))
        result = np.zeros((1, 4, 5, filter_shape[0]), np.float32)
        options = {"padding": SAME, "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
        options["fusedActivationFunction"] = activation
        convolved = graph.builtin("CONV_2D", [graph.first, filters, bias], result, **options)
        return partitions_of(graph.finish(graph.signs(convolved)))

    assert partitions(6, 3, 3, 32) == partitions(6, 1, 2, 32) == partitions(6, 1, 1, 32, activation=TANH) == 2
    assert partitions(6, 1, 1, 16) == 2  # of two groups
    assert partitions(6, 1, 1, 32) == (1 if multiplies_in_float() else 2)


def test_glue_is_resized() -> None:
    graph = GlueGraph((1, 4, 5, 33))
    correction = graph.constant(graph.rng.standard_normal((1, 4, 5, 33)).astype(np.float32))
    thinned = graph.subsample(graph.first, (1, 2, 1, 1))
    total = graph.add(graph.pad(thinned, [(0, 0), (1, 1), (0, 0), (0, 0)]), correction)
    loaded = interpreter(graph.finish(graph.signs(total)))
    for batch in (1, 3, 2, 5):
        x = graph.rng.standard_normal((batch, 4, 5, 33)).astype(np.float32)
        signs = np.where(x < 0, -1, 1).astype(np.float32)[:, ::2]
        sums = np.pad(signs, [(0, 0), (1, 1), (0, 0), (0, 0)]) + graph.arrays[correction]
        np.testing.assert_array_equal(invoke(loaded, x), np.where(sums < 0, -1, 1))


def wrong_glue() -> list[tuple[str, bytes, str]]:
    def of(build: Any) -> bytes:
        graph = GlueGraph((1, 4, 5, 33))
        build(graph)
        return graph.finish(graph.signs(list(graph.arrays)[-1]))

    def padded(*edges: int) -> bytes:
        amounts = np.array(edges, np.int32)
        return of(lambda g: g.builtin("PAD", [g.first, g.constant(amounts)], g.arrays[g.first]))

    def gathered(index: int, axis: int) -> bytes:
        listed = np.array([index], np.int32)
        result = np.zeros((1, 1, 5, 33), np.float32)
        return of(lambda g: g.builtin("GATHER", [g.first, g.constant(listed)], result, axis=axis))

    def added(*shape: int) -> bytes:
        return of(lambda g: g.builtin("ADD", [g.first, g.constant(np.ones(shape, np.float32))], g.arrays[g.first]))

    most = 2**31 - 1
    return [
        ("negative padding", padded(0, 0, -1, 0, 0, 0, 0, 0), "PAD .*paddings must not be below 0"),
        ("6 paddings", padded(0, 0, 0, 0, 0, 0), r"PAD .*paddings must be 8 numbers, found \[6\]"),
        ("long axis", padded(0, 0, most, most, 0, 0, 0, 0), r"PAD .*longer than 2\^31"),
        ("vast padding", padded(0, 0, 2**20, 0, 2**10, 0, 0, 0), "PAD .*out of proportion"),
        ("vast padding on all sides", padded(*[2**30] * 8), r"PAD .*longer than 2\^31"),
        ("index beyond the axis", gathered(4, 1), r"GATHER .*indices must be in \[0, 4\)"),
        ("index below 0", gathered(-1, 1), r"GATHER .*indices must be in \[0, 4\)"),
        ("no such axis", gathered(0, 4), "GATHER .*axis 4 is none of"),
        ("axis below -4", gathered(0, -5), "GATHER .*axis -5 is none of"),
        ("other channels", added(32), "ADD .*do not broadcast"),
        ("other rows", added(3, 5, 33), "ADD .*do not broadcast"),
    ]


WRONG_GLUE = {what: (data, message) for what, data, message in (wrong_glue() if unavailable is None else [])}


@pytest.mark.parametrize("what", WRONG_GLUE)
def test_wrong_glue(what: str) -> None:
    data, message = WRONG_GLUE[what]
    with pytest.raises(RuntimeError, match=message):
        interpreter(data).allocate_tensors()


# ---- What is wrong is said ----


def test_options_of_the_delegate() -> None:
    with pytest.raises(ConfigError, match="threads must be a number from 1 to 256, found '0'"):
        litert_delegate(0)
    with pytest.raises(ConfigError, match=r"kernel: 'abacus' does not run on this CPU; known: .*reference"):
        litert_delegate(kernel="abacus")
    from ai_edge_litert.interpreter import load_delegate

    with pytest.raises(ValueError, match="unknown option 'speed'; known: threads, kernel"):
        load_delegate(str(plugins.library_path(plugins.LITERT_DELEGATE)), {"speed": "high"})


def test_a_library_that_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "LITERT_DELEGATE", "bnnedge_no_such_plugin")
    with pytest.raises(MissingDependencyError, match=r"plug-in bnnedge_no_such_plugin was not built: install a C"):
        litert_delegate()
    with pytest.raises(MissingDependencyError, match=r"stock LiteRT does not know LceBMaxPool2d, LceBconv2d, .*, and "):
        LiteRt.open(chain()[0])
    assert "was not built" in (plugins.unavailable("bnnedge_no_such_plugin") or "")


def test_a_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"no library")
    monkeypatch.setattr(plugins, "library_path", lambda name: tmp_path / "broken.so")
    with pytest.raises(MissingDependencyError, match="bnnedge_litert_delegate cannot be loaded, reinstall bnnedge"):
        litert_delegate()


def with_options(data: bytes, blob: bytes | None) -> bytes:
    raw = parse_model(data).raw
    raw.subgraphs[0].operators[0].customOptions = None if blob is None else np.frombuffer(blob, np.uint8)
    return serialize(raw)


GOOD = Case(channels=64, outputs=5, size=(5, 6))
WRONG_OPTIONS: list[tuple[dict[str, int | None], str]] = [
    ({"channels_in": 63}, "the filter has bits beyond its 63 channels"),
    ({"stride_height": 0}, "stride_height must be an integer in"),
    ({"stride_width": -1}, "stride_width must be an integer in"),
    ({"stride_width": 2**40}, "stride_width must be an integer in"),
    ({"dilation_height_factor": 0}, "dilation_height_factor"),
    ({"dilation_width_factor": 2**31 - 1}, "reaches too far"),
    ({"dilation_height_factor": 2**31 - 1, "padding": VALID}, "filter does not fit"),
    ({"padding": 2}, "padding must be"),
    ({"pad_values": 2}, "pad_values must be"),
    ({"channels_in": 0}, "channels_in must be"),
    ({"channels_in": 65}, "groups|words"),
    ({"channels_in": 32}, "groups|words"),
    ({"channels_in": 2**31 - 1}, "groups|words"),
    ({"channels_in": None}, "channels_in must be .* found none"),
    ({"fused_activation_function": None}, "fused_activation_function must be .* found none"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_OPTIONS, ids=lambda value: str(value)[:50])
def test_wrong_options_of_a_convolution(changes: dict[str, int | None], message: str) -> None:
    merged: dict[str, int | None] = {**conv_options(GOOD), **changes}
    blob = flexbuffer(**{key: value for key, value in merged.items() if value is not None})
    data = with_options(conv_model(GOOD, Parameters.of(GOOD)), blob)
    with pytest.raises(RuntimeError, match=message) as failure:
        interpreter(data).allocate_tensors()
    assert "bnnedge: LceBconv2d" in str(failure.value)


def wrong_inputs() -> list[tuple[str, bytes, str]]:
    """(what, file, message): a good convolution with one thing changed."""
    good = conv_model(GOOD, Parameters.of(GOOD))

    def changed(change: Any) -> bytes:
        raw = parse_model(good).raw
        change(raw.subgraphs[0], raw.subgraphs[0].operators[0])
        return serialize(raw)

    def inputs(*values: int) -> bytes:
        return changed(lambda graph, op: setattr(op, "inputs", list(values)))

    def tensor(index: int, **fields: Any) -> bytes:
        return changed(lambda graph, op: vars(graph.tensors[index]).update(fields))

    def constant_output(_: Any, op: Any) -> None:
        op.inputs, op.outputs = [source, weight, gamma, gamma, -1], [beta]

    def uninitialised(index: int) -> bytes:
        return tensor(index, buffer=0)

    types = schema().TensorType
    source, weight, gamma, beta, target = range(5)
    return [
        ("4 inputs", inputs(source, weight, gamma, beta), "needs 5 inputs, found 4"),
        ("no inputs", inputs(), "needs 5 inputs, found 0"),
        ("no activations", inputs(-1, weight, gamma, beta, -1), "input and filter must be there"),
        ("no filter", inputs(source, -1, gamma, beta, -1), "input and filter must be there"),
        ("no multiplier", inputs(source, weight, -1, beta, -1), "needs a multiplier"),
        ("no bias", inputs(source, weight, gamma, -1, -1), "needs a bias"),
        ("float filter", inputs(source, gamma, gamma, beta, -1), "filter must be int32, found float32"),
        ("filter as bias", inputs(source, weight, gamma, weight, -1), "bias must be float32, found int32"),
        ("no constant filter", uninitialised(weight), "filter must be a constant"),
        ("no constant bias", uninitialised(beta), "bias must be a constant"),
        ("float activations", tensor(source, type=types.FLOAT32), "input must be int32, found float32"),
        ("no threshold", tensor(target, type=types.INT32), "needs a threshold"),
        ("int16 output", tensor(target, type=types.INT16), r"output must be float32, int8 or int32 \(bits\)"),
        ("int8 without scale", tensor(target, type=types.INT8), "int8 output needs a finite scale"),
        ("rank 3", tensor(source, shape=[5, 6, 2]), r"input must be \[N, H, W, words\], found \[5, 6, 2\]"),
        ("rank 3 filter", tensor(weight, shape=[15, 3, 2]), r"filter must be \[O, kh, kw, words\]"),
        ("3 words", tensor(source, shape=[1, 5, 6, 3]), r"64 channels take 2 words, found input \[1, 5, 6, 3\]"),
        ("other outputs", tensor(weight, shape=[3, 3, 5, 2]), r"multiplier must be \[3\], found \[5\]"),
        ("groups", tensor(weight, shape=[10, 3, 3, 1]), "10|do not divide|must be"),
        ("no pixels", tensor(source, shape=[1, 0, 6, 2]), "empty|fit"),
        ("constant output", changed(constant_output), "'constant2' is a constant and cannot be written"),
    ]


WRONG_INPUTS = {what: (data, message) for what, data, message in (wrong_inputs() if unavailable is None else [])}


@pytest.mark.parametrize("what", WRONG_INPUTS)
def test_wrong_inputs_of_a_convolution(what: str) -> None:
    data, message = WRONG_INPUTS[what]
    with pytest.raises(RuntimeError, match=message):
        interpreter(data).allocate_tensors()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filter_height": 0}, "filter_height must be"),
        ({"stride_width": 0}, "stride_width must be"),
        ({"stride_height": None}, "stride_height must be .* found none"),
        ({"padding": 7}, "padding must be"),
        ({"filter_width": 9}, "window does not fit"),
    ],
)
def test_wrong_options_of_a_pool(changes: dict[str, int | None], message: str) -> None:
    words = np.zeros((1, 4, 4, 1), np.int32)
    good: dict[str, int | None] = {"filter_height": 2, "filter_width": 2, "stride_height": 2, "stride_width": 2}
    merged = {**good, "padding": VALID, **changes}
    blob = flexbuffer(**{key: value for key, value in merged.items() if value is not None})
    with pytest.raises(RuntimeError, match=f"LceBMaxPool2d.*{message}"):
        interpreter(model_of("LceBMaxPool2d", blob, words, words[:, :2, :2])).allocate_tensors()


@pytest.mark.parametrize("blob", [None, b"", b"\0", b"\x24\x01", bytes(64), b"\xff" * 64, b"no flexbuffer at all"])
def test_options_that_are_no_map(blob: bytes | None) -> None:
    data = with_options(conv_model(GOOD, Parameters.of(GOOD)), blob)
    with pytest.raises(RuntimeError, match=r"channels_in must be an integer .* found none"):
        interpreter(data).allocate_tensors()


# ---- Hostile files: in a process of their own, which must not die ----


def survives(data: bytes, x: Array) -> bool:
    """Whether the file ran; False if it was refused."""
    try:
        loaded = interpreter(data)
        loaded.allocate_tensors()
        entry = loaded.get_input_details()[0]
        loaded.set_tensor(entry["index"], np.resize(x, entry["shape"]).astype(entry["dtype"]))
        loaded.invoke()
    except (RuntimeError, ValueError):
        return False
    return True


def glue_model() -> tuple[bytes, Array]:
    graph = GlueGraph((1, 3, 4, 33))
    table = graph.gather(graph.constant(np.ones((1, 2, 2, 33), np.float32)), [0, 1], axis=1)
    thinned = graph.subsample(graph.pad(graph.first, [(0, 0), (1, 0), (0, 0), (0, 0)]), (1, 2, 2, 1))
    return graph.finish(graph.signs(graph.clip(graph.add(thinned, table, "SUB")))), graph.x


def hostile_models() -> list[tuple[bytes, Array]]:
    p = Parameters.of(GOOD)
    words = pack(p.signs).view(np.int32)
    pooled = model_of("LceBMaxPool2d", bmaxpool2d_options((2, 2), (2, 2), SAME), words, words[:, :3, :3])
    return [(conv_model(GOOD, p), words), (pooled, words)]


def hostile_options() -> list[bool]:
    """Every byte of the options changed, the options cut off anywhere, and noise."""
    rng = np.random.default_rng(0)
    ran = []
    for data, x in hostile_models():
        blob = bytes(parse_model(data).raw.subgraphs[0].operators[0].customOptions)
        blobs = [blob[:size] for size in range(len(blob))] + [blob[start:] for start in range(len(blob))]
        for position, value in itertools.product(range(len(blob)), (0, 1, 0x24, 0x7F, 0x80, 0xFF)):
            blobs.append(blob[:position] + bytes([value]) + blob[position + 1 :])
        for _ in range(200):
            noise = np.frombuffer(blob, np.uint8).copy()
            noise[rng.integers(0, len(blob), 4)] = rng.integers(0, 256, 4)
            blobs.append(noise.tobytes())
        raw = parse_model(data).raw
        for changed in blobs:
            raw.subgraphs[0].operators[0].customOptions = np.frombuffer(changed, np.uint8)
            ran.append(survives(serialize(raw), x))
    return ran


def hostile_tensors() -> list[bool]:
    """Every tensor with another type, shape or buffer, every index another one."""
    string = schema().TensorType.STRING
    shapes = [[], [1], [0], [5], [2**31 - 1], [1, 5, 6, 2, 1], [2, 5, 6, 2], [1, 2**20, 2**20, 2], [1, 1, 1, 1]]
    ran = []
    for data, x in [*hostile_models(), (chain()[0], image(1)), glue_model()]:
        count = len(parse_model(data).subgraph.tensors)
        for index in range(count):
            fields: list[dict[str, Any]] = [{"type": code} for code in range(11) if code != string]
            fields += [{"shape": shape} for shape in shapes] + [{"buffer": buffer} for buffer in range(4)]
            for changes in fields:
                raw = parse_model(data).raw
                for name, value in changes.items():
                    setattr(raw.subgraphs[0].tensors[index], name, value)
                ran.append(survives(serialize(raw), x))
        codes = [op.code for op in parse_model(data).operators]
        for number, op in enumerate(parse_model(data).subgraph.operators):
            # Interpreters themselves crash where a builtin operator that was not claimed lacks a tensor.
            is_ours = codes[number].startswith("Lce")
            for field in ("inputs", "outputs"):
                length = len(getattr(op, field))
                for position, index in itertools.product(range(length), range(-1 if is_ours else 0, count + 1)):
                    raw = parse_model(data).raw
                    indices = [int(i) for i in getattr(op, field)]
                    indices[position] = index
                    setattr(raw.subgraphs[0].operators[number], field, indices)
                    ran.append(survives(serialize(raw), x))
                for indices in ([], [0] * 9, [count - 1, count - 1]) if is_ours else ():
                    raw = parse_model(data).raw
                    setattr(raw.subgraphs[0].operators[number], field, indices)
                    ran.append(survives(serialize(raw), x))
    return ran


HOSTILE = {"options": hostile_options, "tensors": hostile_tensors}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_do_not_crash(name: str) -> None:
    done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ran, refused = map(int, done.stdout.split()[-2:])
    assert ran > 0 and refused > 100


if __name__ == "__main__":
    outcomes = HOSTILE[sys.argv[1]]()
    print(sum(outcomes), len(outcomes) - sum(outcomes))
