"""Pooling over the pixels of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bnnedge.export.graph.node import FloatNode, WeightlessNode
from bnnedge.export.graph.tensor import Dtypes, Pair, Shapes


@dataclass(kw_only=True)
class MaxPool2d(WeightlessNode):
    """Maximum over windows; outside pixels never win. On ``bits`` tensors it is the AND of the packed words."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)

    def summands(self, inputs: Shapes) -> int:
        return 0

    def reads(self, given: Dtypes) -> Dtypes:
        return given

    def writes(self, given: Dtypes) -> Dtypes:
        return given


@dataclass(kw_only=True)
class AvgPool2d(FloatNode, WeightlessNode):
    """Mean over windows, no padding."""

    kernel: Pair
    stride: Pair

    def summands(self, inputs: Shapes) -> int:
        return math.prod(self.kernel)
