"""Nodes that stand for several others; a target that has one operator for them asks for them by its passes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnnedge.export.graph.convolution import BinaryConv2d
from bnnedge.export.graph.int8 import QuantizedConv2d
from bnnedge.export.graph.node import Node, Weights
from bnnedge.export.graph.pooling import MaxPool2d
from bnnedge.export.graph.tensor import Dtypes, FloatArray, Quantization, Shape, Shapes


def _floats(*values: FloatArray | None) -> tuple[Weights, ...]:
    return tuple(Weights(array, 32) for array in values if array is not None)


@dataclass(kw_only=True)
class Block(Node):
    """A binary convolution without threshold and these steps, each only where it is set, rounded one by one:

    1. ``y = s * multiplier + bias``, s the convolution of the first input
    2. ``y = y + residual``, the second input
    3. ``y = (slope * y if y < 0 else y) + offset``
    4. ``y = min(max(y, low), high)``, the ``output``
    5. ``signs``, a second output of ``bits``: -1 where ``y < limit``, else +1
    """

    conv: BinaryConv2d
    slope: FloatArray | None = None
    offset: FloatArray | None = None
    low: float = -np.inf
    high: float = np.inf
    signs: str | None = None
    limit: FloatArray | None = None
    """[O]; None means 0."""

    @property
    def clips(self) -> bool:
        """Whether step 4 is set."""
        return self.low > -np.inf or self.high < np.inf

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.output,) if self.signs is None else (self.output, self.signs)

    @property
    def label(self) -> str:
        return self.conv.label

    def weights(self) -> tuple[Weights, ...]:
        return *self.conv.weights(), *_floats(self.slope, self.offset, self.limit)

    def macs(self, inputs: Shapes, output: Shape) -> int:
        return self.conv.macs(inputs, output)

    def summands(self, inputs: Shapes) -> int:
        steps = (len(inputs) == 2, self.slope is not None, self.offset is not None)
        return self.conv.summands(inputs[:1]) + 2 * sum(steps)

    def reads(self, given: Dtypes) -> Dtypes:
        return ("bits",) if len(given) == 1 else ("bits", "float32")

    def writes(self, given: Dtypes) -> Dtypes:
        return ("float32",) if self.signs is None else ("float32", "bits")


@dataclass(kw_only=True)
class BinarizeBelow(Node):
    """float32 to bits: -1 where ``x < limit``, else +1; limit is [C], or the second input [N, 1, 1, 1]."""

    limit: FloatArray | None = None

    def weights(self) -> tuple[Weights, ...]:
        return _floats(self.limit)

    def macs(self, inputs: Shapes, output: Shape) -> int:
        return 0

    def summands(self, inputs: Shapes) -> int:
        return 0

    def reads(self, given: Dtypes) -> Dtypes:
        return tuple("float32" for _ in given)

    def writes(self, given: Dtypes) -> Dtypes:
        return ("bits",)


@dataclass(kw_only=True)
class Stem(Node):
    """These nodes, in this order, those after ``conv`` only where they are set, rounded one by one:

    1. ``SpaceToDepth`` if ``folds``, ``Quantize`` with ``source``, ``conv``, ``pool``, which give codes of ``target``
    2. ``Dequantize``, ``y = y + lowest``, the ``output``
    3. ``signs``, a second output of ``bits``: -1 where ``y < limit``, else +1
    """

    folds: bool
    source: Quantization
    conv: QuantizedConv2d
    target: Quantization
    pool: MaxPool2d | None = None
    lowest: FloatArray | None = None
    """[O]; None means 0."""
    signs: str | None = None
    limit: FloatArray | None = None
    """[O]; None means 0."""

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.output,) if self.signs is None else (self.output, self.signs)

    @property
    def label(self) -> str:
        return self.conv.label

    def weights(self) -> tuple[Weights, ...]:
        return *self.conv.weights(), *_floats(self.lowest, self.limit)

    def macs(self, inputs: Shapes, output: Shape) -> int:
        fold = 2 if self.folds else 1
        axes = zip(inputs[0][2:], self.conv.edges, self.conv.weight.shape[2:], self.conv.stride, strict=True)
        size = [(pixels // fold + sum(edges) - kernel) // stride + 1 for pixels, edges, kernel, stride in axes]
        return self.conv.macs(inputs, (*output[:2], *size))

    def summands(self, inputs: Shapes) -> int:
        quantize = convolve = dequantize = 2
        return quantize + convolve + dequantize + (0 if self.lowest is None else 2)

    def reads(self, given: Dtypes) -> Dtypes:
        return ("float32",)

    def writes(self, given: Dtypes) -> Dtypes:
        return ("float32",) if self.signs is None else ("float32", "bits")
