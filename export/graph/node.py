"""The contract of a node: one operation of the export graph, and the facts that every node states about itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from bnnedge.export.graph.tensor import Dtypes, Shape, Shapes


@dataclass(frozen=True)
class Weights:
    """One constant array that a node computes with."""

    values: NDArray[Any]
    bits: Literal[1, 8, 32]
    """How many bits one value needs. Values of 1 bit are -1 and +1."""


@dataclass(kw_only=True)
class Node(ABC):
    """One operation: ``inputs`` and ``output`` are tensor names; ``name`` is the module path it came from.

    The abstract methods are the facts that verification, the tables and the targets ask a node for. A class that leaves
    one out cannot be instantiated; Python's error names the class and the fact. A class without constants may take
    two of them from ``WeightlessNode``.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    reason: str = ""
    """Why the weights of this node are not binary, for the export table; empty where it has none."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Every tensor that the node writes, ``output`` first."""
        return (self.output,)

    @property
    def label(self) -> str:
        """What the node is called in tables."""
        return type(self).__name__.lower()

    @abstractmethod
    def weights(self) -> tuple[Weights, ...]:
        """The constant arrays; the first one is what the multiply-accumulates multiply by."""

    @abstractmethod
    def macs(self, inputs: Shapes, output: Shape) -> int:
        """Multiply-accumulates with ``weights()`` for one sample; all shapes are given with the batch dimension."""

    @abstractmethod
    def summands(self, inputs: Shapes) -> int:
        """How many float32 operands one output value is computed from, each of which may add one rounding error.

        0 if the node only moves, compares or counts values. ``inputs`` are shapes with the batch dimension.
        The rounding bound of ``bnnedge/export/verify.py`` is taken from the sum of these numbers.
        """

    @abstractmethod
    def reads(self, given: Dtypes) -> Dtypes:
        """The element kinds that the inputs are read as, where the tensors are of the kinds ``given``.

        A node that reads float32 may be given ``bits``: it then reads the numbers -1 and +1.
        """

    @abstractmethod
    def writes(self, given: Dtypes) -> Dtypes:
        """The element kinds of ``outputs`` where the inputs are of the kinds ``given``."""


class WeightlessNode(Node):
    """A node that computes with its inputs alone."""

    def weights(self) -> tuple[Weights, ...]:
        return ()

    def macs(self, inputs: Shapes, output: Shape) -> int:
        return 0


class FloatNode(Node):
    """A node that reads and writes float32 tensors only."""

    def reads(self, given: Dtypes) -> Dtypes:
        return tuple("float32" for _ in given)

    def writes(self, given: Dtypes) -> Dtypes:
        return ("float32",)
