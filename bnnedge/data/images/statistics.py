"""Mean and standard deviation of the training images."""

from __future__ import annotations

import torch
from torch import Tensor

from bnnedge.errors import DataError

_MOST_VALUES = 2**26
"""Values in a chunk, 512 MiB as float64."""


def channel_statistics(images: Tensor, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel of stored images [N, C, H, W], divided by ``scale``.

    Sums run in float64 over chunks: 45,000 CIFAR images as float64 would be 1.1 GB. Large images are fewer in a chunk.
    Raises ``DataError`` for a channel that is constant.
    """
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in torch.split(images, min(4096, max(_MOST_VALUES // images[0].numel(), 1))):
        pixels = (chunk.float() / scale).double()
        total += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
    count = images.numel() // images.shape[1]
    mean = total / count
    variance = squares / count - mean.square()
    if bool((variance <= 0).any()):
        raise DataError("a colour channel of the training images is constant, so it cannot be normalised")
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())
