"""Graph rewrites, one a file, each a function graph -> graph that keeps the results."""

from __future__ import annotations

from bnnedge.export.graph import Graph
from bnnedge.export.passes.fold_affine import fold_affine
from bnnedge.export.passes.fuse_threshold import fuse_threshold
from bnnedge.export.passes.hoist_binarize import hoist_binarize
from bnnedge.export.passes.merge_duplicates import merge_duplicates

PASSES = (fold_affine, hoist_binarize, merge_duplicates, fuse_threshold)
"""In the order in which they are applied."""


def optimize(graph: Graph) -> Graph:
    """Apply every pass and check the result."""
    for rewrite in PASSES:
        graph = rewrite(graph)
    return graph.validate()
