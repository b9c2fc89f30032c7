"""Binary layers whose input has the same sign everywhere: they learn nothing, and pass nothing on.

The usual cause is an activation without negative values (ReLU, sigmoid) right in front of the layer. That is proved
here from the graph, by the bounds of every tensor, or seen by verification in the signs of its images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bnnedge.export import graph as g

Bounds = tuple[float, float]
"""The smallest and the largest value that a tensor can have."""
_ANY = (-math.inf, math.inf)


def constant_signs(graph: g.Graph) -> dict[str, int]:
    """The sign, -1 or +1, of each binary layer of a traced graph whose input provably has no other, by its name."""
    bounds: dict[str, Bounds] = dict.fromkeys(graph.inputs, _ANY)
    found = {}
    for node in graph.nodes:
        given = [bounds[tensor] for tensor in node.inputs]
        if isinstance(node, g.BinaryConv2d) and given[0][0] == given[0][1]:
            found[node.name] = int(given[0][0])
        for tensor in node.outputs:
            bounds[tensor] = _bounds(node, given)
    return found


def constant_in(signs: Mapping[str, NDArray[np.int8]]) -> dict[str, int]:
    """The sign of each layer all of whose signs are equal, by its name; ``signs`` are those of verification."""
    return {name: int(values.flat[0]) for name, values in signs.items() if values.size and values.min() == values.max()}


def _bounds(node: g.Node, given: list[Bounds]) -> Bounds:
    low, high = given[0]
    if isinstance(node, g.Binarize):
        return (1.0, 1.0) if low >= 0 else (-1.0, -1.0) if high < 0 else (-1.0, 1.0)
    if isinstance(node, g.Clip):
        return min(max(low, node.low), node.high), min(max(high, node.low), node.high)
    if isinstance(node, g.PRelu):
        return _hull(
            [(low, low), (high, high), _products((low, min(high, 0.0)), node.slope) if low < 0 else (low, high)]
        )
    if isinstance(node, g.Activation):
        return (-1.0, 1.0) if node.kind == "tanh" else (0.0, 1.0)
    if isinstance(node, g.Affine):
        lows, highs = (_scaled(end, node.multiplier) + node.bias for end in (low, high))
        return float(np.minimum(lows, highs).min()), float(np.maximum(lows, highs).max())
    if isinstance(node, g.Sqrt):
        return 0.0, math.sqrt(max(high, 0.0))
    if isinstance(node, g.Mul) and node.inputs[0] == node.inputs[1]:  # a square
        return 0.0, max(low * low, high * high)
    if isinstance(node, g.Add):
        return low + given[1][0], high + given[1][1]
    if isinstance(node, g.Mul) and min(low, given[1][0]) >= 0:
        return 0.0, math.inf
    if isinstance(node, g.AvgPool2d | g.PadChannels):  # both may count zeros in
        return min(low, 0.0), max(high, 0.0)
    if isinstance(node, g.MaxPool2d | g.Mean | g.Reshape | g.Subsample | g.Concat | g.SpaceToDepth):
        return _hull(given)
    return _ANY


def _hull(bounds: list[Bounds]) -> Bounds:
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def _products(ends: Bounds, factors: g.FloatArray) -> Bounds:
    products = np.concatenate([_scaled(end, factors) for end in ends])
    return float(products.min()), float(products.max())


def _scaled(end: float, factors: g.FloatArray) -> g.FloatArray:
    """``end * factors``, where 0 times infinity is 0."""
    with np.errstate(invalid="ignore"):
        return np.where(factors == 0, 0.0, end * factors)
