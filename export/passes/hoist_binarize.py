"""Take signs as early as possible, so that less is computed in float."""

from __future__ import annotations

from dataclasses import replace

from bnnedge.export.graph import Binarize, Clip, Graph, MaxPool2d, TensorSpec
from bnnedge.export.passes.prune import prune


def hoist_binarize(graph: Graph) -> Graph:
    """Two rewrites that keep every bit, until none applies:

    - ``sign(clip(x, low, high)) = sign(x)`` if low < 0 <= high: the sign reads what the clip reads;
    - ``sign(maxpool(x)) = maxpool(sign(x))``, if nothing else reads the pooled floats.
    """
    changed = True
    while changed:
        changed = False
        for binarize in [n for n in graph.nodes if isinstance(n, Binarize)]:
            rewritten = _past_clip(graph, binarize) or _past_max_pool(graph, binarize)
            if rewritten is not None:
                # If the sign was the clip's last reader, the clip must go: its source would still count it as a reader.
                graph, changed = prune(rewritten), True
                break
    return graph


def _past_clip(graph: Graph, binarize: Binarize) -> Graph | None:
    clip = graph.producer(binarize.inputs[0])
    if not isinstance(clip, Clip) or not clip.low < 0 <= clip.high:
        return None
    early = replace(binarize, inputs=clip.inputs)
    return replace(graph, nodes=[early if n is binarize else n for n in graph.nodes])


def _past_max_pool(graph: Graph, binarize: Binarize) -> Graph | None:
    pool = graph.producer(binarize.inputs[0])
    if not isinstance(pool, MaxPool2d) or graph.only_consumer(pool.output) is not binarize:
        return None
    bits = TensorSpec(graph.tensors[pool.inputs[0]].shape, "bits")
    early = replace(binarize, inputs=pool.inputs, output=f"{binarize.output}/before_pool")
    late = replace(pool, inputs=(early.output,), output=binarize.output)
    index = graph.nodes.index(pool)
    nodes = [n for n in graph.nodes if n is not binarize and n is not pool]
    nodes = [*nodes[:index], early, late, *nodes[index:]]
    return replace(graph, nodes=nodes, tensors={**graph.tensors, early.output: bits})
