"""The graph: nodes in execution order, and the checks that hold for any of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnnedge.errors import ExportError
from bnnedge.export.graph.convolution import BinaryConv2d
from bnnedge.export.graph.node import Node
from bnnedge.export.graph.tensor import Dtypes, Shapes, TensorSpec


@dataclass
class Graph:
    """Nodes in execution order, the spec of every tensor, and what the file should say of itself.

    ``inputs`` and ``outputs`` are tensor names in the order of the model's; files carry them as they are.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: list[Node]
    tensors: dict[str, TensorSpec]
    metadata: dict[str, Any] = field(default_factory=dict)
    calls: tuple[str, ...] = ()
    """For every call of a binary layer, in the order in which the model makes them, the name of its node as traced."""

    @property
    def input(self) -> str:
        """The one input. Raises ``ExportError`` if there are several."""
        return _only("input", self.inputs)

    @property
    def output(self) -> str:
        """The one output. Raises ``ExportError`` if there are several."""
        return _only("output", self.outputs)

    def producer(self, tensor: str) -> Node | None:
        """The node that writes ``tensor``; None for a graph input."""
        return next((n for n in self.nodes if tensor in n.outputs), None)

    def consumers(self, tensor: str) -> list[Node]:
        """The nodes that read ``tensor``, in execution order."""
        return [n for n in self.nodes if tensor in n.inputs]

    def only_consumer(self, tensor: str) -> Node | None:
        """The one reader of ``tensor``, or None if there are several, none, or it is a graph output."""
        readers = self.consumers(tensor)
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def binary_nodes(self) -> Iterator[BinaryConv2d]:
        """The binary convolutions in execution order."""
        return (n for n in self.nodes if isinstance(n, BinaryConv2d))

    def shapes(self, node: Node) -> Shapes:
        """The shapes of what ``node`` reads, with the batch dimension."""
        return tuple(self.tensors[tensor].shape for tensor in node.inputs)

    def dtypes(self, node: Node) -> Dtypes:
        """The element kinds of what ``node`` reads."""
        return tuple(self.tensors[tensor].dtype for tensor in node.inputs)

    def validate(self) -> Graph:
        """Return self, or raise ``ExportError`` naming the node that breaks an invariant."""
        known = set(self.inputs)
        names: set[str] = set()
        for node in self.nodes:
            for tensor in node.inputs:
                if tensor not in known:
                    raise ExportError(f"{node.name}: reads {tensor!r} before it is written")
            for tensor in node.outputs:
                if tensor in known:
                    raise ExportError(f"{node.name}: writes {tensor!r}, which is written already")
                if tensor not in self.tensors:
                    raise ExportError(f"{node.name}: no shape is known for its output {tensor!r}")
            if node.name in names:
                raise ExportError(f"two nodes are called {node.name!r}")
            self._check_dtypes(node)
            _check_binary_weights(node)
            known.update(node.outputs)
            names.add(node.name)
        for output in self.outputs:
            if output not in known:
                raise ExportError(f"the graph output {output!r} is never written")
        for tensors in (self.inputs, self.outputs):
            if len(set(tensors)) < len(tensors):
                raise ExportError(f"every input and output needs a name of its own, found {', '.join(tensors)}")
        return self

    def _check_dtypes(self, node: Node) -> None:
        given = self.dtypes(node)
        for tensor, read in zip(node.inputs, node.reads(given), strict=True):
            dtype = self.tensors[tensor].dtype
            if dtype != read and (dtype, read) != ("bits", "float32"):  # bits can be read as the numbers -1 and +1
                raise ExportError(f"{node.name}: {type(node).__name__} cannot read a {dtype} tensor")
        for tensor, written in zip(node.outputs, node.writes(given), strict=True):
            if self.tensors[tensor].dtype != written:
                dtype = self.tensors[tensor].dtype
                raise ExportError(f"{node.name}: {type(node).__name__} cannot write a {dtype} tensor")
        for tensor in (*node.inputs, *node.outputs):
            spec = self.tensors[tensor]
            if (spec.dtype == "int8") != (spec.quantization is not None):
                raise ExportError(f"{tensor}: int8 tensors, and only they, have a quantization")


def _only(what: str, names: tuple[str, ...]) -> str:
    if len(names) != 1:
        raise ExportError(f"expected a graph of one {what}, found {len(names)}: {', '.join(names)}")
    return names[0]


def _check_binary_weights(node: Node) -> None:
    for weights in node.weights():
        if weights.bits == 1 and not (np.abs(weights.values) == 1).all():
            raise ExportError(f"{node.name}: a binary weight must be -1 or +1 everywhere, found other values")
