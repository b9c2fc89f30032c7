"""Fuse an int8 stem, from the float image to the first signs, into one node.

A target with an operator for it lists it in its ``passes``, after ``fuse_blocks``.
"""

from __future__ import annotations

from dataclasses import replace

from bnnedge.export.graph import (
    Affine,
    Binarize,
    BinarizeBelow,
    Dequantize,
    Graph,
    MaxPool2d,
    Node,
    Quantize,
    QuantizedConv2d,
    SpaceToDepth,
    Stem,
)


def fuse_stem(graph: Graph) -> Graph:
    """The int8 stem of ``graph``, if it has one that the operator knows, as a ``Stem``."""
    quantize = next((node for node in graph.nodes if isinstance(node, Quantize)), None)
    if quantize is None:
        return graph
    conv = graph.only_consumer(quantize.output)
    if not isinstance(conv, QuantizedConv2d) or not _meets_image(conv.edges, conv.weight.shape[2:]):
        return graph
    fold = graph.producer(quantize.inputs[0])
    gone: list[Node] = [quantize, conv]
    source, target = (graph.tensors[tensor].quantization for tensor in (quantize.output, conv.output))
    assert source is not None and target is not None
    folds = isinstance(fold, SpaceToDepth) and graph.only_consumer(fold.output) is quantize
    if fold is not None and folds:
        gone.append(fold)
    stem = Stem(
        name=conv.name,
        inputs=fold.inputs if fold is not None and folds else quantize.inputs,
        output=conv.output,
        folds=folds,
        source=source,
        conv=conv,
        target=target,
    )
    pool = graph.only_consumer(stem.output)
    if isinstance(pool, MaxPool2d):
        if not _meets_image(tuple((pad, pad) for pad in pool.padding), pool.kernel):
            return graph
        stem.pool, stem.output = pool, pool.output
        gone.append(pool)
    dequantize = graph.only_consumer(stem.output)
    if not isinstance(dequantize, Dequantize):
        return graph
    stem.output = dequantize.output
    gone.append(dequantize)
    lowest = graph.only_consumer(stem.output)
    if isinstance(lowest, Affine) and bool((lowest.multiplier == 1).all()):
        stem.lowest, stem.output = lowest.bias, lowest.output
        gone.append(lowest)
    _take_signs(graph, stem, gone)
    first = min(graph.nodes.index(node) for node in gone)
    rest = [node for node in graph.nodes if not any(node is other for other in gone)]
    return replace(graph, nodes=[*rest[:first], stem, *rest[first:]])


def _meets_image(edges: tuple[tuple[int, int], ...], kernel: tuple[int, ...]) -> bool:
    """Whether no window can lie in the padding alone."""
    return all(max(pads) < size for pads, size in zip(edges, kernel, strict=True))


def _take_signs(graph: Graph, stem: Stem, gone: list[Node]) -> None:
    for reader in graph.consumers(stem.output):
        below = isinstance(reader, BinarizeBelow) and reader.limit is not None
        if isinstance(reader, Binarize) or below:
            stem.signs = reader.output
            stem.limit = reader.limit if isinstance(reader, BinarizeBelow) else None
            gone.append(reader)
            return
