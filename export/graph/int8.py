"""Nodes of an int8 stem: from float32 to codes of 8 bits and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnnedge.export.graph.activation import Clip
from bnnedge.export.graph.convolution import Conv2d
from bnnedge.export.graph.node import Node, WeightlessNode, Weights
from bnnedge.export.graph.tensor import Dtypes, FloatArray, Pair, Shape, Shapes


@dataclass(kw_only=True)
class Quantize(WeightlessNode):
    """float32 to int8: the code nearest to ``x / scale + zero_point`` of the output's quantization, saturated."""

    def summands(self, inputs: Shapes) -> int:
        return 2

    def reads(self, given: Dtypes) -> Dtypes:
        return ("float32",)

    def writes(self, given: Dtypes) -> Dtypes:
        return ("int8",)


@dataclass(kw_only=True)
class QuantizedConv2d(Node):
    """int8 convolution: the code nearest to ``a * multiplier + zero_point``, saturated.

    ``a = conv(q - zero_point of the input, weight) + bias`` is an integer and ``multiplier = scale of the input *
    weight_scale / scale of the output``, per channel. Padding adds 0 to a, that is, the input's zero point.
    """

    weight: NDArray[np.int8]
    """[-127, 127], shape [O, I, kh, kw]."""
    weight_scale: FloatArray
    """[O], float32 numbers."""
    bias: NDArray[np.int32]
    """[O], in steps of input scale times weight scale."""
    stride: Pair
    edges: tuple[Pair, Pair]
    """Pixels added before and after, of the rows and of the columns."""
    stands_for: tuple[Conv2d, Clip | None]
    """The float nodes that it takes the place of."""
    lowest: float
    """What they give where the output's code is the lowest; an ``Affine`` behind ``Dequantize`` adds it."""
    reason: str = "int8 stem"

    @property
    def label(self) -> str:
        return f"int8 conv {self.weight.shape[2]}x{self.weight.shape[3]}"

    def weights(self) -> tuple[Weights, ...]:
        return Weights(self.weight, 8), Weights(self.weight_scale, 32), Weights(self.bias, 32)

    def macs(self, inputs: Shapes, output: Shape) -> int:
        return math.prod(self.weight.shape[1:]) * math.prod(output[1:])

    def summands(self, inputs: Shapes) -> int:
        return 2  # the sum is an integer; its scale and the zero point are floats

    def reads(self, given: Dtypes) -> Dtypes:
        return ("int8",)

    def writes(self, given: Dtypes) -> Dtypes:
        return ("int8",)


@dataclass(kw_only=True)
class Dequantize(WeightlessNode):
    """int8 to float32: ``(q - zero_point) * scale`` of the input's quantization."""

    def summands(self, inputs: Shapes) -> int:
        return 2

    def reads(self, given: Dtypes) -> Dtypes:
        return ("int8",)

    def writes(self, given: Dtypes) -> Dtypes:
        return ("float32",)
