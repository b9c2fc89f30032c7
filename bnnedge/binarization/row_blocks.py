"""Blocks of rows of a tensor, for chains of operations that treat each row or each element by itself."""

from __future__ import annotations

from torch import Tensor

BLOCK = 2**18
"""Elements in a block. A few tensors of this size fit into the cache of a CPU core."""


def row_blocks(x: Tensor) -> list[slice]:
    """Slices of dimension 0 that cover ``x``.

    On a CPU they are blocks so small that their intermediate results stay in the cache; on a GPU there is but one.
    """
    rows = max(BLOCK // x[0].numel(), 1) if x.device.type == "cpu" else len(x)
    return [slice(start, start + rows) for start in range(0, len(x), rows)]
