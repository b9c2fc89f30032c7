"""The bound up to which verification takes a difference for rounding, on a graph that is worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bnnedge.export import graph as g
from bnnedge.export.replay import rounding_bound

ZEROS = np.zeros(5)


def hand_made_graph() -> g.Graph:
    """Every family of nodes once, on an image of 3 x 4 x 4 and a batch of 2."""
    nodes: list[g.Node] = [
        g.Conv2d(name="stem", inputs=("x",), output="a", weight=np.ones((5, 3, 3, 3)), bias=ZEROS, padding=(1, 1)),
        g.Affine(name="norm", inputs=("a",), output="b", multiplier=np.ones(5), bias=ZEROS),
        g.Binarize(name="sign", inputs=("b",), output="bits"),
        g.BinaryConv2d(
            name="binary",
            inputs=("bits",),
            output="c",
            weight=np.ones((5, 5, 3, 3), np.int8),
            multiplier=np.ones(5),
            bias=ZEROS,
            padding=(1, 1),
        ),
        g.Add(name="sum", inputs=("b", "c"), output="d"),
        g.MaxPool2d(name="pool", inputs=("d",), output="e", kernel=(2, 2), stride=(2, 2)),
        g.AvgPool2d(name="average", inputs=("e",), output="f", kernel=(2, 1), stride=(2, 1)),
        g.Mean(name="mean", inputs=("f",), output="h", axes=(2, 3), keepdims=False),
        g.Linear(name="head", inputs=("h",), output="i", weight=np.ones((7, 5)), bias=np.zeros(7)),
        g.Activation(name="softmax", inputs=("i",), output="y", kind="softmax"),
    ]
    full = dict.fromkeys(("a", "b", "bits", "c", "d"), (2, 5, 4, 4))
    pooled: dict[str, tuple[int, ...]] = {"e": (2, 5, 2, 2), "f": (2, 5, 1, 2), "h": (2, 5), "i": (2, 7), "y": (2, 7)}
    shapes: dict[str, tuple[int, ...]] = {"x": (2, 3, 4, 4), **full, **pooled}
    tensors = {name: g.TensorSpec(shape, "bits" if name == "bits" else "float32") for name, shape in shapes.items()}
    return g.Graph(("x",), ("y",), nodes, tensors).validate()


def test_the_rounding_bound_of_a_hand_made_graph() -> None:
    """The bound is what lets an error pass: its n and its value are worked out by hand here.

    stem 3 * 3 * 3 = 27, norm 2, sign 0, binary 5 * 3 * 3 = 45, sum 2, max-pool 0, average of 2, mean of 1 * 2, head 5,
    softmax of 7 with a quotient of two: 27 + 2 + 45 + 2 + 2 + 2 + 5 + 9 = 94, and 8 sqrt(94) = 77.56287... .
    """
    graph = hand_made_graph()
    summands = {node.name: node.summands(graph.shapes(node)) for node in graph.nodes}
    assert summands == {
        "stem": 27, "norm": 2, "sign": 0, "binary": 45, "sum": 2, "pool": 0, "average": 2, "mean": 2, "head": 5,
        "softmax": 9,
    }  # fmt: skip
    assert rounding_bound(graph) == pytest.approx(77.5628777 / 16777216, rel=1e-8)
