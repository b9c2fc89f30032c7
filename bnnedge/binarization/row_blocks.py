"""The rows of a tensor in blocks, for chains of operations on each element or each row by itself."""

from __future__ import annotations

from torch import Tensor

BLOCK = 2**18
"""Elements; a few tensors of this size fit a CPU core's cache."""


def row_blocks(x: Tensor) -> list[slice]:
    """All rows of dimension 0; on a CPU in blocks, so that what is computed from one stays in the cache."""
    rows = max(BLOCK // x[0].numel(), 1) if x.device.type == "cpu" else len(x)
    return [slice(start, start + rows) for start in range(0, len(x), rows)]
