"""One binary convolution: its settings, its parameters, LCE's arithmetic in NumPy, and its file."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.export.runtimes.lce import Lce
from bnnedge.kernels.layout import pack, words_for
from tests.kernels.litert.running import Array, Pair, run, run_in_lce
from tests.kernels.litert.writing import (
    NONE,
    RELU,
    RELU6,
    RELU_N1_TO_1,
    SAME,
    VALID,
    flexbuffer,
    model_of,
    requantized,
)

KINDS = ["float32", "int8", "int32"]
PADDINGS = [(VALID, 0), (SAME, 0), (SAME, 1)]
CHANNELS = [1, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129]


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
