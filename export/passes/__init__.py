"""Graph rewrites, one a file, each a function graph -> graph that keeps the results.

Those that every format wants are listed here. A target lists further ones itself (``Target.passes``).
"""

from __future__ import annotations

from collections.abc import Callable

from bnnedge.export.graph import Graph
from bnnedge.export.passes.fold_affine import fold_affine
from bnnedge.export.passes.fuse_threshold import fuse_threshold
from bnnedge.export.passes.hoist_binarize import hoist_binarize
from bnnedge.export.passes.merge_biases import merge_biases
from bnnedge.export.passes.merge_duplicates import merge_duplicates
from bnnedge.export.passes.quantize_stem import Calibration, quantize_stem

Pass = Callable[[Graph], Graph]
PASSES: tuple[Pass, ...] = (hoist_binarize, merge_duplicates, merge_biases, fuse_threshold)
"""The passes behind ``fold_affine``, in the order in which they are applied."""


def optimize(graph: Graph, int8_stem: Calibration | None = None) -> Graph:
    """Apply every pass and check the result; the stem becomes int8 if there is something to calibrate it with."""
    graph = fold_affine(graph)
    if int8_stem is not None:
        graph = quantize_stem(graph, int8_stem)  # must come before a sign moves ahead of the stem's clip or max-pool
    for rewrite in PASSES:
        graph = rewrite(graph)
    return graph.validate()
