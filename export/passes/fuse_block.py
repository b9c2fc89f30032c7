"""Fuse a binary convolution with the float operations behind it, up to the signs of the next layer, into one node.

A target whose operators work on packed signs lists it in its ``passes``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bnnedge.export.graph import (
    Add,
    Affine,
    Binarize,
    BinarizeBelow,
    BinaryConv2d,
    Block,
    Clip,
    Graph,
    Node,
    PRelu,
    Sub,
)
from bnnedge.kernels.layout import WORD_BITS


def packs(conv: BinaryConv2d) -> bool:
    """Whether the convolution's groups fill whole words, as packed signs in NHWC need."""
    return conv.groups == 1 or conv.weight.shape[1] % WORD_BITS == 0


def fuse_blocks(graph: Graph) -> Graph:
    """The graph with every binary convolution and the operations behind it as a ``Block``.

    A subtraction or an affine map before any other sign becomes part of that sign (``BinarizeBelow``).
    """
    positions = {id(node): float(index) for index, node in enumerate(graph.nodes)}
    producers = {node.output: node for node in graph.nodes}
    gone: set[int] = set()
    blocks: list[Node] = []
    # Blocks are made from the end, so that the later one of two convolutions that are added does the addition.
    for conv in reversed(list(graph.binary_nodes())):
        if conv.threshold is None and packs(conv):
            block, absorbed = _block(graph, conv, gone)
            gone.update(map(id, absorbed))
            # The block goes right behind its last input: a reader of its signs may precede an absorbed node.
            sources = [conv, *(producers[t] for t in block.inputs if t in producers)]
            positions[id(block)] = max(positions[id(node)] for node in sources) + 0.5
            blocks.append(block)
    kept = [node for node in graph.nodes if id(node) not in gone]
    nodes = sorted([*kept, *blocks], key=lambda node: positions[id(node)])
    graph = replace(graph, nodes=nodes)
    for rewrite in (_with_limit, _behind_clip):
        for binarize in [node for node in graph.nodes if isinstance(node, Binarize)]:
            graph = rewrite(graph, binarize)
    return graph


def _block(graph: Graph, conv: BinaryConv2d, gone: set[int]) -> tuple[Block, list[Node]]:
    """The largest block that starts with ``conv``, and the nodes that it replaces."""
    block = Block(name=conv.name, inputs=conv.inputs, output=conv.output, conv=conv)
    absorbed: list[Node] = [conv]
    while block.output not in graph.outputs and block.signs is None:
        readers = graph.consumers(block.output)
        signs = [node for node in readers if isinstance(node, Binarize)]
        others = [node for node in readers if not isinstance(node, Binarize)]
        if len(others) != 1 or len(signs) > 1 or id(others[0]) in gone:
            break
        step = others[0]
        longer = _with_step(graph, block, step)
        if longer is None:
            break
        absorbed.append(step)
        if signs:
            # The sign of a clipped value may be taken before the clip.
            if not (isinstance(step, Clip) and step.low < 0 <= step.high and _can_write_signs(conv)):
                return _with_signs(graph, block, absorbed[:-1])
            absorbed += signs
            longer.signs = signs[0].output
        block = longer
    return (block, absorbed) if block.signs else _with_signs(graph, block, absorbed)


def _can_write_signs(conv: BinaryConv2d) -> bool:
    """Whether the output channels of one group fill whole words of bits."""
    return conv.groups == 1 or conv.weight.shape[0] // conv.groups % WORD_BITS == 0


def _with_signs(graph: Graph, block: Block, absorbed: list[Node]) -> tuple[Block, list[Node]]:
    """The block and the absorbed nodes, with one sign of the block's output added to them if there is any."""
    if _can_write_signs(block.conv):
        for reader in sorted(graph.consumers(block.output), key=lambda node: not isinstance(node, Binarize)):
            if isinstance(reader, Binarize):
                return replace(block, signs=reader.output), [*absorbed, reader]
            limit, sign = _positive_affine(reader), graph.only_consumer(reader.output)
            if limit is not None and isinstance(sign, Binarize):
                return replace(block, signs=sign.output, limit=limit), [*absorbed, reader, sign]
    return block, absorbed


def _with_step(graph: Graph, block: Block, step: Node) -> Block | None:
    """``block`` with ``step`` as its last step; None if a block has no such step or has later ones already."""
    clips, bends = block.clips, block.slope is not None
    adds = len(block.inputs) == 2
    if isinstance(step, Add) and not (adds or bends or clips):
        others = [tensor for tensor in step.inputs if tensor != block.output]
        if len(others) == 1 and graph.tensors[others[0]].shape == graph.tensors[block.output].shape:
            return replace(block, inputs=(*block.inputs, others[0]), output=step.output)
    if isinstance(step, PRelu) and not (bends or clips):
        return replace(block, slope=step.slope, output=step.output)
    if isinstance(step, Affine) and not clips and block.offset is None and bool((step.multiplier == 1).all()):
        if bends:
            return replace(block, offset=step.bias, output=step.output)
        return replace(block, conv=replace(block.conv, bias=block.conv.bias + step.bias), output=step.output)
    if isinstance(step, Clip) and not clips:
        return replace(block, low=step.low, high=step.high, output=step.output)
    return None


def _positive_affine(node: Node | None) -> NDArray[np.float64] | None:
    """The limits below which ``node``, an affine map with positive multipliers, gives values below 0; else None."""
    if not isinstance(node, Affine) or not (node.multiplier > 0).all():
        return None
    largest = float(np.finfo(np.float32).max)
    with np.errstate(over="ignore"):
        exact = np.clip(-node.bias / node.multiplier, -largest, largest)
    # The smallest float32 that is not below the exact limit separates the same float32 values.
    limit = exact.astype(np.float32)
    limit = np.where(limit < exact, np.nextafter(limit, np.float32(np.inf)), limit)
    return np.minimum(limit, largest).astype(np.float64)


def _with_limit(graph: Graph, binarize: Binarize) -> Graph:
    """``binarize(x - limit)`` as one node."""
    source = graph.producer(binarize.inputs[0])
    if source is None or graph.only_consumer(source.output) is not binarize:
        return graph
    shape = graph.tensors[source.output].shape
    below = BinarizeBelow(name=binarize.name, inputs=source.inputs, output=binarize.output)
    if isinstance(source, Sub):
        # x - m < 0 exactly where x < m: a difference of floats is rounded to 0 only if it is 0.
        first, second = (graph.tensors[tensor].shape for tensor in source.inputs)
        if first != shape or second != (shape[0], 1, 1, 1):
            return graph
    else:
        below.limit = _positive_affine(source)
        if below.limit is None or len(shape) != 4:
            return graph
    nodes = [below if node is binarize else node for node in graph.nodes if node is not source]
    return replace(graph, nodes=nodes)


def _behind_clip(graph: Graph, binarize: Binarize) -> Graph:
    """The sign of a value that is clipped anyway is taken behind the clip: then one tensor has all readers."""
    for node in graph.nodes[: graph.nodes.index(binarize)]:
        if isinstance(node, Clip) and node.inputs == binarize.inputs and node.low < 0 <= node.high:
            late = replace(binarize, inputs=(node.output,))
            return replace(graph, nodes=[late if other is binarize else other for other in graph.nodes])
    return graph
