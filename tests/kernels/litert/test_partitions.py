"""The operators that the delegate claims, and the number of partitions that they fall into."""

from __future__ import annotations

from bnnedge.export.targets.tflite.writer import TfliteWriter
from tests.kernels.litert.builtin_graph import BuiltinGraph
from tests.kernels.litert.running import entering, needs_delegate, partitions_of
from tests.kernels.litert.writing import NONE, RELU6, RELU_N1_TO_1, TANH

pytestmark = needs_delegate


def test_only_what_lies_behind_binary_operators_is_claimed() -> None:
    def partitions(between: str, activation: int = NONE) -> int:
        graph = BuiltinGraph((1, 4, 5, 33))
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
    graph = BuiltinGraph((1, 4, 5, 33))
    left = graph.conv(graph.first, 33)
    square = graph.builtin("MUL", [graph.first, graph.first], graph.arrays[graph.first] ** 2)
    total = graph.clip(graph.add(left, square))
    after = graph.clip(graph.add(graph.conv(total, 33), total))
    last = graph.clip(graph.add(graph.conv(after, 33), after))
    _, second = entering(graph.finish(last))
    assert [tensor for tensor in second if tensor in graph.computed] == [total]
    graph.check(last, partitions=2)


def test_an_operator_that_waits_for_another_operator_is_left_alone() -> None:
    """Claimed, x - MEAN(x) would only move from one delegate to the other."""
    graph = BuiltinGraph((1, 4, 5, 33))
    square = graph.builtin("MUL", [graph.first, graph.first], graph.arrays[graph.first] ** 2)
    difference = graph.add(graph.first, square, "SUB")
    assert entering(graph.finish(graph.signs(difference))) == [[graph.entry], [difference]]
    graph = BuiltinGraph((1, 4, 5, 33))
    square = graph.builtin("MUL", [graph.entry, graph.entry], graph.x**2)
    difference = graph.add(graph.first, square, "SUB")
    assert entering(graph.finish(graph.signs(difference))) == [[graph.entry], [graph.first, square]]
