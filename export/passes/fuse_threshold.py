"""A binary convolution whose result is only binarized compares integers; it needs no float arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bnnedge.export.graph import Binarize, Graph


def fuse_threshold(graph: Graph) -> Graph:
    """``binarize(s multiplier + bias)`` becomes ``-1 where s < threshold, else +1``.

    For m > 0, ``s m + b < 0`` is ``s < -b/m``, for integer s ``s < ceil(-b/m)``. A channel with m < 0 has its weights
    negated first, which negates s; one with m = 0 gets a threshold out of reach.
    """
    for conv in list(graph.binary_nodes()):
        binarize = graph.only_consumer(conv.output)
        if conv.threshold is not None or not isinstance(binarize, Binarize):
            continue
        negative = conv.multiplier < 0
        fused = replace(
            conv,
            output=binarize.output,
            weight=np.where(negative[:, None, None, None], -conv.weight, conv.weight).astype(np.int8),
            threshold=integer_thresholds(np.abs(conv.multiplier), conv.bias, conv.fan_in),
        )
        graph = replace(graph, nodes=[fused if n is conv else n for n in graph.nodes if n is not binarize])
    return graph


def integer_thresholds(multiplier: NDArray[np.float64], bias: NDArray[np.float64], fan_in: int) -> NDArray[np.int32]:
    """The smallest integer t in [-K, K + 1] with ``t m + b >= 0``, K = ``fan_in``, m >= 0; shapes [O]."""
    safe = np.where(multiplier > 0, multiplier, 1.0)
    with np.errstate(over="ignore"):
        t = np.ceil(np.clip(-bias / safe, -fan_in - 2, fan_in + 2))
    # The division may have rounded to a neighbour; the products decide, as they are what the network computes.
    t = np.where(t * safe + bias < 0, t + 1, t)
    t = np.where((t - 1) * safe + bias >= 0, t - 1, t)
    t = np.where(multiplier > 0, t, np.where(bias < 0, fan_in + 1, -fan_in))
    return np.clip(t, -fan_in, fan_in + 1).astype(np.int32)
