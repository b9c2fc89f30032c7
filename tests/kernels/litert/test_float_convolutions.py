"""Float convolutions with a kernel of 1x1 between binary ones, which the delegate computes where it has a kernel."""

from __future__ import annotations

import numpy as np
import pytest

from bnnedge.kernels.plugins import litert_delegate
from tests.kernels.litert.builtin_graph import BuiltinGraph
from tests.kernels.litert.running import Pair, multiplies_in_float, needs_delegate, partitions_of, run
from tests.kernels.litert.writing import NONE, RELU, RELU6, RELU_N1_TO_1, SAME, TANH

pytestmark = needs_delegate


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
    graph = BuiltinGraph((2, 7, 9, channels))
    before = graph.clip(graph.conv(graph.first, channels))
    result = graph.pointwise(before, outputs, stride, activation, has_bias)
    graph.check(result, [result], threads=threads)
    graph = BuiltinGraph((2, 7, 9, channels))
    before = graph.clip(graph.conv(graph.first, channels))
    beside = graph.conv(before, outputs, stride=stride)
    total = graph.add(beside, graph.pointwise(before, outputs, stride, activation, has_bias))
    after = graph.clip(total)
    graph.check(graph.add(graph.conv(after, outputs), after), threads=threads)


@needs_float_kernel
def test_float_convolutions_equal_xnnpacks() -> None:
    graph = BuiltinGraph((1, 12, 14, 64))
    before = graph.clip(graph.conv(graph.first, 64))
    data = graph.finish(graph.pointwise(before, 128, (2, 2)))
    stock = litert_delegate(kernel="portable")  # which has none of its own
    np.testing.assert_array_equal(run(data, graph.x), run(data, graph.x, stock))


def test_other_float_convolutions_are_left_alone() -> None:
    def partitions(*filter_shape: int, activation: int = NONE) -> int:
        graph = BuiltinGraph((1, 4, 5, 32))
        filters, bias = (graph.constant(np.ones(shape, np.float32)) for shape in (filter_shape, filter_shape[:1]))
        result = np.zeros((1, 4, 5, filter_shape[0]), np.float32)
        options = {"padding": SAME, "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
        options["fusedActivationFunction"] = activation
        convolved = graph.builtin("CONV_2D", [graph.first, filters, bias], result, **options)
        return partitions_of(graph.finish(graph.signs(convolved)))

    assert partitions(6, 3, 3, 32) == partitions(6, 1, 2, 32) == partitions(6, 1, 1, 32, activation=TANH) == 2
    assert partitions(6, 1, 1, 16) == 2  # of two groups
    assert partitions(6, 1, 1, 32) == (1 if multiplies_in_float() else 2)
