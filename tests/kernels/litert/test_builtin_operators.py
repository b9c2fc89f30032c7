"""Builtin operators between those of LCE, which the delegate computes too: bit for bit as LiteRT does."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from bnnedge.export.targets.tflite.writer import TfliteWriter
from tests.kernels.litert.builtin_graph import SPECIAL, BuiltinGraph
from tests.kernels.litert.convolution import CHANNELS
from tests.kernels.litert.running import Array, interpreter, invoke, needs_delegate, unavailable
from tests.kernels.litert.writing import NONE, RELU, RELU6, RELU_N1_TO_1

pytestmark = needs_delegate

BROADCASTS = [
    (2, 3, 4, 33), (1, 3, 4, 33), (3, 4, 33), (33,), (1,), (2, 1, 1, 33), (2, 3, 4, 1), (1, 3, 1, 1), (2, 1, 4, 33),
    (1, 1, 4, 1), (4, 33), (1, 2, 3, 4, 33), (3, 2, 3, 4, 33),
]  # fmt: skip


@pytest.mark.parametrize("activation", [NONE, RELU, RELU_N1_TO_1, RELU6])
@pytest.mark.parametrize("code", ["ADD", "SUB", "MUL"])
def test_arithmetic(code: str, activation: int) -> None:
    for shape, is_swapped, threads in itertools.product(BROADCASTS, (False, True), (1, 3)):
        graph = BuiltinGraph((2, 3, 4, 33))
        values = (2 * graph.rng.standard_normal(shape)).astype(np.float32)
        values.flat[:: max(1, values.size // 40)] = np.resize(SPECIAL, values.flat[:: max(1, values.size // 40)].shape)
        a, b = graph.first, graph.constant(values)
        total = graph.add(b, a, code, activation) if is_swapped else graph.add(a, b, code, activation)
        graph.check(total, threads=threads)
        graph = BuiltinGraph((2, 3, 4, 33))
        a, b = graph.first, graph.constant(values)
        total = graph.add(b, a, code, activation) if is_swapped else graph.add(a, b, code, activation)
        graph.check(graph.clip(total), [total], threads=threads)


def test_an_operator_that_broadcasts_both_ways() -> None:
    graph = BuiltinGraph((2, 3, 1, 33))
    total = graph.add(graph.first, graph.constant(graph.rng.standard_normal((5, 1)).astype(np.float32)))
    graph.check(graph.add(total, graph.first, "SUB"), [total])


def test_results_equal_the_interpreters_own() -> None:
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

    def whole(graph: BuiltinGraph) -> int:
        zero = graph.add(graph.first, graph.constant(-graph.arrays[graph.first]))
        return graph.add(zero, graph.constant(a.reshape(shape)))  # 0 + -0 is 0, all else stays

    def equal(graph: BuiltinGraph, found: Sequence[int], wanted: list[Array]) -> None:
        graph.check(found[-1], found[:-1])
        for tensor, array in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(graph.arrays[tensor], array)

    for code, activation in itertools.product(("ADD", "SUB", "MUL"), (NONE, RELU, RELU_N1_TO_1, RELU6)):

        def combine(writer: TfliteWriter, left: int, code: str = code, activation: int = activation) -> list[int]:
            right = writer.constant("right", b.reshape(shape))
            total = writer.tensor("total", shape)
            return [writer.builtin(code, [left, right], total, fusedActivationFunction=activation)]

        graph = BuiltinGraph(shape)
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

    graph = BuiltinGraph(shape)
    left = whole(graph)
    found = [graph.clip(left, activation) for activation in (RELU, RELU_N1_TO_1, RELU6)]
    found += [graph.bound(code, left, number) for code, number in itertools.product(("MAXIMUM", "MINIMUM"), numbers)]
    equal(graph, [*found, graph.prelu(left, slope)], stock(bend))


@pytest.mark.parametrize("channels", CHANNELS)
def test_operators_that_move_values(channels: int) -> None:
    graph = BuiltinGraph((2, 5, 6, channels))
    padded = graph.pad(graph.first, [(0, 1), (2, 0), (1, 3), (0, 2)])
    thinned = graph.subsample(padded, (1, 2, 3, 1))
    last = graph.subsample(thinned, (2, 9, 1, 2))
    gathered = graph.gather(last, [1, 0, 1, 1], axis=2)
    graph.check(gathered, [padded, last])
    graph = BuiltinGraph((2, 5, 6, channels))
    graph.check(graph.gather(graph.pad(graph.first, [(0, 0)] * 4), [channels - 1, 0], axis=-1))


def test_pad_of_packed_bits_adds_plus_one() -> None:
    graph = BuiltinGraph((1, 4, 5, 70))
    packed = graph.bits(graph.entry)
    edges = [(0, 0), (1, 2), (3, 0), (0, 0)]
    padded = graph.pad(packed, edges)
    signs = np.pad(np.where(graph.x < 0, -1, 1), edges, constant_values=1).astype(np.float32)
    graph.check(graph.put(signs, lambda t: graph.custom("LceDequantize", padded, t)), [padded])


@pytest.mark.parametrize("is_tapped", [False, True])
def test_operators_on_constants(is_tapped: bool) -> None:
    """The table of a padding correction is unfolded once, and still there for whom else wants to see it."""
    graph = BuiltinGraph((3, 4, 5, 33))
    table = graph.constant(graph.rng.standard_normal((1, 2, 3, 33)).astype(np.float32))
    rows = graph.gather(table, [0, 1, 1, 0], axis=1)
    columns = graph.gather(rows, [2, 0, 1, 1, 2], axis=2)
    graph.check(graph.add(graph.first, columns), [rows, columns] if is_tapped else [])


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(seed: int, threads: int) -> None:
    """Tensors that live long and short, and places in memory that are used again."""
    graph = BuiltinGraph((2, 16, 15, 40), seed)
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


def test_graphs_are_resized() -> None:
    graph = BuiltinGraph((1, 4, 5, 33))
    correction = graph.constant(graph.rng.standard_normal((1, 4, 5, 33)).astype(np.float32))
    thinned = graph.subsample(graph.first, (1, 2, 1, 1))
    total = graph.add(graph.pad(thinned, [(0, 0), (1, 1), (0, 0), (0, 0)]), correction)
    loaded = interpreter(graph.finish(graph.signs(total)))
    for batch in (1, 3, 2, 5):
        x = graph.rng.standard_normal((batch, 4, 5, 33)).astype(np.float32)
        signs = np.where(x < 0, -1, 1).astype(np.float32)[:, ::2]
        sums = np.pad(signs, [(0, 0), (1, 1), (0, 0), (0, 0)]) + graph.arrays[correction]
        np.testing.assert_array_equal(invoke(loaded, x), np.where(sums < 0, -1, 1))


def wrong_builtin() -> list[tuple[str, bytes, str]]:
    def of(build: Any) -> bytes:
        graph = BuiltinGraph((1, 4, 5, 33))
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


WRONG_BUILTIN = {what: (data, message) for what, data, message in (wrong_builtin() if unavailable is None else [])}


@pytest.mark.parametrize("what", WRONG_BUILTIN)
def test_wrong_builtin(what: str) -> None:
    data, message = WRONG_BUILTIN[what]
    with pytest.raises(RuntimeError, match=message):
        interpreter(data).allocate_tensors()
