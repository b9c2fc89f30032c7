"""Fold batch norm, scales and biases into the weights around them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bnnedge.export.graph import Affine, BinaryConv2d, Conv2d, Graph, Linear, MaxPool2d, Node


def fold_affine(graph: Graph) -> Graph:
    """Each per-channel affine ``x m + b`` goes, in float64, into

    - the convolution or dense layer (or affine) that alone feeds it: ``(w x + c) m + b = (m w) x + (c m + b)``; a
      binary convolution takes it into its multiplier and bias, its weights stay +-1;
    - that layer on the other side of a max-pool, if no m is negative: then the maximum and the affine commute;
    - the dense layer that alone reads it: ``W (x m + b) + c = (W m) x + (W b + c)``.
    """
    changed = True
    while changed:
        changed = False
        for affine in [n for n in graph.nodes if isinstance(n, Affine)]:
            folded = _into_producer(graph, affine) or _past_max_pool(graph, affine) or _into_linear(graph, affine)
            if folded is not None:
                graph, changed = folded, True
                break
    return graph


def _into_producer(graph: Graph, affine: Affine) -> Graph | None:
    producer = graph.producer(affine.inputs[0])
    if producer is None or graph.only_consumer(producer.output) is not affine:
        return None
    m = affine.multiplier
    folded: Node
    if isinstance(producer, BinaryConv2d) and producer.threshold is None:
        folded = replace(producer, multiplier=producer.multiplier * m, bias=producer.bias * m + affine.bias)
    elif isinstance(producer, Conv2d | Linear):
        shape = (-1, *[1] * (producer.weight.ndim - 1))
        folded = replace(producer, weight=producer.weight * m.reshape(shape), bias=producer.bias * m + affine.bias)
    elif isinstance(producer, Affine):
        folded = replace(producer, multiplier=producer.multiplier * m, bias=producer.bias * m + affine.bias)
    else:
        return None
    folded.output = affine.output
    nodes = [folded if n is producer else n for n in graph.nodes if n is not affine]
    return replace(graph, nodes=nodes)


def _past_max_pool(graph: Graph, affine: Affine) -> Graph | None:
    pool = graph.producer(affine.inputs[0])
    if (
        not isinstance(pool, MaxPool2d)
        or graph.only_consumer(pool.output) is not affine
        or np.any(affine.multiplier < 0)
    ):
        return None
    source = graph.producer(pool.inputs[0])
    if not isinstance(source, BinaryConv2d | Conv2d | Affine) or graph.only_consumer(source.output) is not pool:
        return None
    before = replace(affine, inputs=pool.inputs, output=f"{affine.output}/before_pool")
    after = replace(pool, inputs=(before.output,), output=affine.output)
    tensors = {**graph.tensors, before.output: graph.tensors[pool.inputs[0]]}
    index = graph.nodes.index(pool)
    nodes = [n for n in graph.nodes if n is not affine and n is not pool]
    return replace(graph, nodes=[*nodes[:index], before, after, *nodes[index:]], tensors=tensors)


def _into_linear(graph: Graph, affine: Affine) -> Graph | None:
    linear = graph.only_consumer(affine.output)
    if not isinstance(linear, Linear):
        return None
    bias = linear.bias + linear.weight @ affine.bias
    folded = replace(linear, inputs=affine.inputs, weight=linear.weight * affine.multiplier, bias=bias)
    return replace(graph, nodes=[folded if n is linear else n for n in graph.nodes if n is not affine])
