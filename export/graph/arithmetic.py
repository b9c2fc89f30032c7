"""Element-wise arithmetic and means."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bnnedge.export.graph.node import FloatNode, WeightlessNode, Weights
from bnnedge.export.graph.tensor import FloatArray, Shape, Shapes


@dataclass(kw_only=True)
class Affine(FloatNode):
    """``x * multiplier + bias`` per channel (axis 1), both [C]."""

    multiplier: FloatArray
    bias: FloatArray

    def weights(self) -> tuple[Weights, ...]:
        return Weights(self.multiplier, 32), Weights(self.bias, 32)

    def macs(self, inputs: Shapes, output: Shape) -> int:
        return math.prod(output[1:])

    def summands(self, inputs: Shapes) -> int:
        return 2


class Elementwise(FloatNode, WeightlessNode):
    """An operation on the elements of float tensors, each of which is one operand of an output value."""

    def summands(self, inputs: Shapes) -> int:
        return len(inputs)


@dataclass(kw_only=True)
class Add(Elementwise):
    """Sum of two tensors with NumPy broadcasting."""


@dataclass(kw_only=True)
class Sub(Elementwise):
    """First tensor minus second, with NumPy broadcasting."""


@dataclass(kw_only=True)
class Mul(Elementwise):
    """Product of two tensors with NumPy broadcasting."""


@dataclass(kw_only=True)
class Div(Elementwise):
    """First tensor divided by second, with NumPy broadcasting."""


@dataclass(kw_only=True)
class Sqrt(Elementwise):
    """Element-wise square root."""


@dataclass(kw_only=True)
class Mean(FloatNode, WeightlessNode):
    """Mean over ``axes`` (never the batch axis)."""

    axes: tuple[int, ...]
    keepdims: bool

    def summands(self, inputs: Shapes) -> int:
        return math.prod(inputs[0][axis] for axis in self.axes)
