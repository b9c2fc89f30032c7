"""Builtin operators of TFLite between those of LCE, written to a file and computed in NumPy side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from bnnedge.export.targets.tflite.writer import ABSENT, TfliteWriter
from bnnedge.kernels.layout import pack
from bnnedge.kernels.plugins import litert_delegate
from tests.kernels.litert.convolution import Case, Parameters, conv_options, doubled_popcounts, expected
from tests.kernels.litert.running import Array, Pair, interpreter, partitions_of
from tests.kernels.litert.writing import NONE, RELU, RELU6, RELU_N1_TO_1, VALID, flexbuffer

SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e38, -3e38, 1 + 2**-23, -1 - 2**-23], np.float32)


class BuiltinGraph:
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


def numbers(graph: BuiltinGraph, shape: tuple[int, ...] | int, is_special: bool = False) -> Array:
    values = (3 * graph.rng.standard_normal(shape)).astype(np.float32)
    if is_special:
        values.flat[::5] = np.resize(SPECIAL, values.flat[::5].shape)
    return values
