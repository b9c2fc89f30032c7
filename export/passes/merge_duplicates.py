"""Merge nodes that compute the same value."""

from __future__ import annotations

from dataclasses import fields, replace

from bnnedge.export.graph import Graph, Node


def merge_duplicates(graph: Graph) -> Graph:
    """Nodes of the same class with the same inputs and settings become one; the first one's output serves all readers.

    That is what a block and its shortcut make when both binarize the block's input. Nodes with weights are left alone.
    """
    renamed: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        node = replace(node, inputs=tuple(renamed.get(tensor, tensor) for tensor in node.inputs))
        settings = [getattr(node, f.name) for f in fields(node) if f.name not in ("name", "inputs", "output")]
        key = (type(node), node.inputs, *settings)
        mergeable = not node.weights() and node.output not in graph.outputs
        if mergeable and key in first:
            renamed[node.output] = first[key]
            continue
        if mergeable:
            first[key] = node.output
        nodes.append(node)
    tensors = {name: spec for name, spec in graph.tensors.items() if name not in renamed}
    return replace(graph, nodes=nodes, tensors=tensors)
