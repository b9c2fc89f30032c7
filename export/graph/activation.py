"""Signs and activation functions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bnnedge.export.graph.node import FloatNode, WeightlessNode, Weights
from bnnedge.export.graph.tensor import Dtypes, FloatArray, Shape, Shapes


@dataclass(kw_only=True)
class Binarize(WeightlessNode):
    """float32 to bits: -1 where ``x < 0``, else +1."""

    def summands(self, inputs: Shapes) -> int:
        return 0

    def reads(self, given: Dtypes) -> Dtypes:
        return ("float32",)

    def writes(self, given: Dtypes) -> Dtypes:
        return ("bits",)


@dataclass(kw_only=True)
class Clip(FloatNode, WeightlessNode):
    """``min(max(x, low), high)``; relu is (0, inf), hard-tanh (-1, 1)."""

    low: float
    high: float

    def summands(self, inputs: Shapes) -> int:
        return 0


@dataclass(kw_only=True)
class PRelu(FloatNode):
    """``x if x >= 0 else slope * x`` per channel (axis 1), slope [C]."""

    slope: FloatArray

    def weights(self) -> tuple[Weights, ...]:
        return (Weights(self.slope, 32),)

    def macs(self, inputs: Shapes, output: Shape) -> int:
        return math.prod(output[1:])

    def summands(self, inputs: Shapes) -> int:
        return 2


@dataclass(kw_only=True)
class Activation(FloatNode, WeightlessNode):
    """A standard function of each element, ``sigmoid`` or ``tanh``, or of each row, ``softmax`` over the last axis."""

    kind: Literal["sigmoid", "tanh", "softmax"]

    def summands(self, inputs: Shapes) -> int:
        return 2 + (inputs[0][-1] if self.kind == "softmax" else 0)
