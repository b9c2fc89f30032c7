"""Nodes that move values and compute none."""

from __future__ import annotations

from dataclasses import dataclass

from bnnedge.export.graph.node import FloatNode, WeightlessNode
from bnnedge.export.graph.tensor import Dtypes, Pair, Shape, Shapes


@dataclass(kw_only=True)
class Reshape(WeightlessNode):
    """Row-major reshape of each sample to ``shape`` (without the batch dimension)."""

    shape: Shape

    def summands(self, inputs: Shapes) -> int:
        return 0

    def reads(self, given: Dtypes) -> Dtypes:
        return ("bits",) if given == ("bits",) else ("float32",)

    def writes(self, given: Dtypes) -> Dtypes:
        return self.reads(given)


class Movement(FloatNode, WeightlessNode):
    """A node that moves float32 values and computes none."""

    def summands(self, inputs: Shapes) -> int:
        return 0


@dataclass(kw_only=True)
class Subsample(Movement):
    """``x[:, :, ::step[0], ::step[1]]``."""

    step: Pair


@dataclass(kw_only=True)
class PadChannels(Movement):
    """Zero channels before and after (axis 1)."""

    before: int
    after: int


@dataclass(kw_only=True)
class Concat(Movement):
    """Concatenation along the channel axis (axis 1)."""


@dataclass(kw_only=True)
class SpaceToDepth(Movement):
    """[N, C, H, W] to [N, 4 C, H/2, W/2]: channel (2 r + s) C + c is ``x[:, c, r::2, s::2]``."""
