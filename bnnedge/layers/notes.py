"""Notes on a tensor: what the layer that made it knows of it and the next layer can use.

A note goes with this very tensor object and holds for its values as they were: reading it finds nothing once the tensor
was changed in place. ``torch.compile`` cannot tell that, so that there are no notes under it.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

_Note = TypeVar("_Note")


class InputBits(NamedTuple):
    """Signs and counts of a GPU tensor in [-1, 1], as in ``kernels/gpu/reference.py``, for the next convolution."""

    signs: Tensor
    counts: Tensor


class ChannelSums(NamedTuple):
    """``reference.Convolved.sums`` of a binary convolution whose output is its integers times ``alpha`` float32 [O]."""

    sums: Tensor
    alpha: Tensor


def attach(tensor: Tensor, note: object) -> None:
    """Note ``note`` on ``tensor``, in place of an older one of the same type."""
    if not torch.compiler.is_compiling():
        setattr(tensor, _name(type(note)), (note, tensor._version))


def read(tensor: Tensor, kind: type[_Note]) -> _Note | None:
    """The note of type ``kind`` on ``tensor``, or None."""
    if torch.compiler.is_compiling():
        return None
    note, version = getattr(tensor, _name(kind), (None, None))
    return note if version == tensor._version else None


def _name(kind: type) -> str:
    return f"_bnnedge_{kind.__name__.lower()}"
