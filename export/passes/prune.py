"""Remove the nodes that nothing reads."""

from __future__ import annotations

from dataclasses import replace

from bnnedge.export.graph import Graph, Node


def prune(graph: Graph) -> Graph:
    """The graph without the nodes that no output depends on, and without their tensors."""
    needed = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if not needed.isdisjoint(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    needed.update(graph.inputs)
    tensors = {name: spec for name, spec in graph.tensors.items() if name in needed}
    return replace(graph, nodes=kept[::-1], tensors=tensors)
