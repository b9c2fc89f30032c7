"""Drop what nothing reads."""

from __future__ import annotations

from dataclasses import replace

from bnnedge.export.graph import Graph, Node


def prune(graph: Graph) -> Graph:
    """The graph without nodes that its output does not depend on, and without their tensors."""
    needed = {graph.output}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if node.output in needed:
            kept.append(node)
            needed.update(node.inputs)
    tensors = {name: spec for name, spec in graph.tensors.items() if name in needed}
    return replace(graph, nodes=kept[::-1], tensors=tensors)
