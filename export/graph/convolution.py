"""Convolutions and dense layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnnedge.export.graph.node import FloatNode, Node, Weights
from bnnedge.export.graph.tensor import Dtypes, FloatArray, Pair, Shape, Shapes


@dataclass(kw_only=True)
class Conv2d(FloatNode):
    """Float convolution. weight [O, I/groups, kh, kw], bias [O]."""

    weight: FloatArray
    bias: FloatArray
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    reason: str = "float in the model"

    @property
    def label(self) -> str:
        return f"conv {self.weight.shape[2]}x{self.weight.shape[3]}"

    @property
    def fan_in(self) -> int:
        """K, the number of products in one output value."""
        return math.prod(self.weight.shape[1:])

    def weights(self) -> tuple[Weights, ...]:
        return Weights(self.weight, 32), Weights(self.bias, 32)

    def macs(self, inputs: Shapes, output: Shape) -> int:
        return self.fan_in * math.prod(output[1:])

    def summands(self, inputs: Shapes) -> int:
        return self.fan_in


@dataclass(kw_only=True)
class BinaryConv2d(Node):
    """Binary convolution of a ``bits`` tensor: ``s = conv(x, weight)`` is an integer, zero padding adds 0.

    Without ``threshold`` the output is float32, ``s * multiplier + bias``. With it the output is ``bits``:
    -1 where ``s < threshold``, else +1; multiplier and bias are then no longer used.
    """

    weight: NDArray[np.int8]
    """{-1, +1}, shape [O, I/groups, kh, kw]."""
    multiplier: FloatArray
    bias: FloatArray
    threshold: NDArray[np.int32] | None = None
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def label(self) -> str:
        return f"binary conv {self.weight.shape[2]}x{self.weight.shape[3]}"

    @property
    def fan_in(self) -> int:
        """K, the number of products in one output value."""
        return math.prod(self.weight.shape[1:])

    def weights(self) -> tuple[Weights, ...]:
        parameters = (self.multiplier, self.bias) if self.threshold is None else (self.threshold,)
        return Weights(self.weight, 1), *(Weights(values, 32) for values in parameters)

    def macs(self, inputs: Shapes, output: Shape) -> int:
        return self.fan_in * math.prod(output[1:])

    def summands(self, inputs: Shapes) -> int:
        # The integer sum is exact, but Larq Compute Engine rounds K times the multiplier when it folds the bias.
        return self.fan_in

    def reads(self, given: Dtypes) -> Dtypes:
        return ("bits",)

    def writes(self, given: Dtypes) -> Dtypes:
        return ("float32",) if self.threshold is None else ("bits",)


@dataclass(kw_only=True)
class Linear(FloatNode):
    """``x @ weight.T + bias`` for x [N, I]; weight [O, I], bias [O]."""

    weight: FloatArray
    bias: FloatArray
    reason: str = "float in the model"

    def weights(self) -> tuple[Weights, ...]:
        return Weights(self.weight, 32), Weights(self.bias, 32)

    def macs(self, inputs: Shapes, output: Shape) -> int:
        return int(self.weight.shape[1]) * math.prod(output[1:])

    def summands(self, inputs: Shapes) -> int:
        return int(self.weight.shape[1])
