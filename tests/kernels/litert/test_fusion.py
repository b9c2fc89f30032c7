"""Operators that the delegate computes in the epilogue of a binary convolution: bit for bit as one by one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.kernels.litert.builtin_graph import SPECIAL, BuiltinGraph, numbers
from tests.kernels.litert.convolution import Case
from tests.kernels.litert.running import Pair, interpreter, invoke, needs_delegate, run
from tests.kernels.litert.writing import NONE, RELU, RELU6, RELU_N1_TO_1, SAME, VALID

pytestmark = needs_delegate

CONVOLUTIONS: list[dict[str, Any]] = [
    {"padding": SAME, "pad_values": 0}, {"padding": SAME, "pad_values": 1, "activation": RELU6},
    {"kernel": (1, 1), "padding": VALID}, {"padding": SAME, "pad_values": 0, "dilation": (2, 1)},
    {"kernel": (2, 3), "padding": SAME, "pad_values": 1}, {"padding": SAME, "activation": RELU_N1_TO_1},
]  # fmt: skip


def one_step(graph: BuiltinGraph, y: int, maps: list[int]) -> int:
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
    graph = BuiltinGraph((1 + seed % 2, 5, 6, channels), seed)
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
        graph = BuiltinGraph((2, 5, 6, channels))
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
        graph = BuiltinGraph((1, 5, 6, 33))
        y = graph.add(graph.conv(graph.first, 33), graph.first)
        before = y if shift is None else graph.add(y, graph.constant(numbers(graph, 33)), "SUB")
        signs = graph.signs(before)
        graph.check(graph.add(graph.clip(y, activation), signs))


def test_two_readers_of_the_signs() -> None:
    graph = BuiltinGraph((2, 5, 6, 40))
    y = graph.add(graph.conv(graph.first, 40), graph.first)
    first, second = graph.conv(y, 40), graph.conv(y, 40, kernel=(1, 1))
    graph.check(graph.add(graph.add(first, second), y))


def test_the_sum_of_two_convolutions() -> None:
    for is_swapped in (False, True):
        graph = BuiltinGraph((2, 8, 7, 33))
        bits = graph.bits(graph.first)
        signs = graph.arrays[graph.first]
        first, second = (graph.conv_of_bits(bits, signs, 70, kernel=k, stride=(2, 2)) for k in ((3, 3), (1, 1)))
        total = graph.add(*((second, first) if is_swapped else (first, second)), activation=RELU_N1_TO_1)
        graph.check(graph.add(graph.conv(total, 70), total))


@pytest.mark.parametrize("channels", [1, 3, 32, 33, 64])
@pytest.mark.parametrize("fields", CONVOLUTIONS, ids=str)
def test_signs_alone(channels: int, fields: dict[str, Any]) -> None:
    """Results that are zero, infinite, not a number or denormal; multipliers of either sign and none."""
    graph = BuiltinGraph((2, 5, 6, channels))
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
        graph = BuiltinGraph((batch, height, width, channels))
        if width + sum(edges[1]) < 3 or height + sum(edges[0]) < 3:
            continue
        around = [(0, 0), *edges, (0, 0)]
        for multiplier in (1.0, 0.31):
            gamma = (multiplier * rng.choice([-1, 1], 37)).astype(np.float32)
            wide = BuiltinGraph((batch, height, width, channels))
            wide.check(wide.zero_padded(wide.first, 37, around, stride, gamma))
            y = graph.zero_padded(graph.first, channels, around, stride, np.resize(gamma, channels))
            graph.check(graph.add(graph.conv(y, channels), y), [y] if multiplier == 1.0 else [])
            graph = BuiltinGraph((batch, height, width, channels))


def test_a_map_that_is_no_correction() -> None:
    """Constants that turn signs in some pixels of a border class only, or by too much."""
    for shape in ((1, 5, 6, 33), (5, 6, 33), (1, 1, 6, 33), (1, 5, 1, 1), (2, 5, 6, 33), (2, 1, 1, 33), (1,)):
        graph = BuiltinGraph((2, 5, 6, 33))
        y = graph.add(graph.conv(graph.first, 33), graph.constant(10 * numbers(graph, shape)))
        graph.check(graph.signs(y))
        graph.check(graph.conv(y, 33))


def test_fused_operators_are_resized() -> None:
    graph = BuiltinGraph((1, 5, 6, 33))
    y = graph.add(graph.conv(graph.first, 33), graph.first, activation=RELU_N1_TO_1)
    z = graph.zero_padded(y, 33, [(0, 0), (1, 1), (1, 1), (0, 0)], (1, 1), np.ones(33, np.float32))
    data = graph.finish(graph.signs(graph.add(graph.conv(z, 33), y)))
    loaded = interpreter(data)
    images = np.random.default_rng(1).standard_normal((4, 5, 6, 33)).astype(np.float32)
    singles = [run(data, images[i : i + 1]) for i in range(4)]
    for chosen in ([0, 1, 2, 3], [2], [3, 3, 0], [1]):
        np.testing.assert_array_equal(invoke(loaded, images[chosen]), np.concatenate([singles[i] for i in chosen]))
