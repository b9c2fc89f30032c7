"""Merge the biases of two layers that are added into one of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnnedge.export.graph import Add, BinaryConv2d, Conv2d, Graph, Node


def merge_biases(graph: Graph) -> Graph:
    """``(W x + c) + (m s + b) = W x + (m s + (b + c))``, for a float and a binary convolution that are only added.

    That is a block's shortcut and its first convolution. The binary convolution adds its bias anyway, while runtimes
    that multiply matrices without one would take another pass for the shortcut's.
    """
    for add in [node for node in graph.nodes if isinstance(node, Add)]:
        sources = [graph.producer(tensor) for tensor in add.inputs]
        for shortcut, binary in (sources, sources[::-1]):
            if (
                isinstance(shortcut, Conv2d)
                and isinstance(binary, BinaryConv2d)
                and binary.threshold is None
                and all(graph.only_consumer(node.output) is add for node in (shortcut, binary))
                and graph.tensors[shortcut.output].shape == graph.tensors[binary.output].shape
            ):
                changed: dict[int, Node] = {
                    id(shortcut): replace(shortcut, bias=np.zeros_like(shortcut.bias)),
                    id(binary): replace(binary, bias=binary.bias + shortcut.bias),
                }
                graph = replace(graph, nodes=[changed.get(id(node), node) for node in graph.nodes])
    return graph
