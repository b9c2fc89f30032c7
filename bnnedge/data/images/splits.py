"""The choice of the samples that are held out for validation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def hold_out(labels: Indices | None, count: int, share: float, seed: int) -> Indices:
    """Sorted indices of the rounded ``share`` of ``count`` samples, of each class alike where there are ``labels``."""
    if labels is not None:
        return stratified_split(labels, (share,), seed)[0]
    chosen = np.random.RandomState(seed).permutation(count)[: round(share * count)]
    return np.sort(chosen)


def stratified_split(
    labels: Indices, shares: tuple[float, ...], seed: int, at_least_one: bool = False
) -> list[Indices]:
    """Sorted indices of one part for each of ``shares``, to which every class gives its rounded share, and of the rest.

    With ``at_least_one`` a class of several samples gives at least one to the first part. The parts are drawn with
    NumPy's legacy generator, whose stream is frozen: they are the same in every version.
    """
    random = np.random.RandomState(seed)
    parts: list[list[Indices]] = [[] for _ in range(len(shares) + 1)]
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        start = 0
        for part, share in zip(parts, shares, strict=False):
            least = int(at_least_one and start == 0 and len(members) > 1)
            end = start + max(round(share * len(members)), least)
            part.append(members[start:end])
            start = end
        parts[-1].append(members[start:])
    return [np.sort(np.concatenate(part)) for part in parts]
