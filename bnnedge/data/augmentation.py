"""Random changes of training images, which a network must not mind.

``--augment NAME`` chooses one of ``AUGMENTATIONS`` (``bnnedge/data/__init__.py``), ``own`` what the data set brings
along, ``none`` nothing. A sample depends on its own random numbers alone, whatever the others of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bnnedge.data.images.resize import Box
from bnnedge.data.preprocessing import Preprocessing


class Augmentation:
    """The contract: stored images [N, C, H, W] and their targets are changed alike by random numbers."""

    numbers: int = 3
    """Random numbers, uniform in [0, 1), that one sample takes."""

    def window(self, width: int, height: int, record: Preprocessing, numbers: Sequence[float]) -> Box | None:
        """The part that is read of a ``width`` x ``height`` image in a file; None for that of an evaluation."""
        return None

    def __call__(self, images: Tensor, targets: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Images and targets [N, ...], changed by ``numbers`` [N, ``self.numbers``].

        Targets that are images themselves, [N, H, W] or [N, C, H, W], move along with their images.
        """
        moved = self.move(images, numbers)
        if targets.dim() < 3:
            return moved, targets
        maps = targets if targets.dim() == 4 else targets.unsqueeze(1)
        return moved, self.move(maps, numbers).view_as(targets)

    def move(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Maps [N, C, H, W] of any type, moved by ``numbers``."""
        raise NotImplementedError


class CropAndFlip(Augmentation):
    """A random crop out of 4 pixels of padding, mirrored at random (He et al. 2016, section 4.2)."""

    def move(self, images: Tensor, numbers: Tensor) -> Tensor:
        return random_flip(random_crop(images, 4, numbers[:, :2]), numbers[:, 2])


class Flip(Augmentation):
    """Half of the images are mirrored left to right."""

    numbers = 1

    def move(self, images: Tensor, numbers: Tensor) -> Tensor:
        return random_flip(images, numbers[:, 0])


class Shift(Augmentation):
    """A random shift by up to an eighth of the width, over a background of zeros."""

    def move(self, images: Tensor, numbers: Tensor) -> Tensor:
        return random_crop(images, images.shape[-1] // 8, numbers[:, :2])


ATTEMPTS = 10
"""Attempts at a random window that fits into the image."""
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
"""Bounds of the random window's share of the image's pixels, and of its width by its height."""


class WindowAndFlip(Augmentation):
    """A window of random area and aspect, mirrored at random (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    The window is of images in files, such as ImageNet's; images in memory are mirrored alone.
    """

    numbers = 2 * ATTEMPTS + 3

    def window(self, width: int, height: int, record: Preprocessing, numbers: Sequence[float]) -> Box:
        return random_window(width, height, numbers, record.width / record.height)

    def move(self, images: Tensor, numbers: Tensor) -> Tensor:
        return random_flip(images, numbers[:, -1])


def random_window(width: int, height: int, numbers: Sequence[float], shape: float = 1.0) -> Box:
    """The first window of random area and aspect that fits, at a random place; else the largest of an allowed aspect.

    ``numbers`` from 0 to below 1 are area and aspect (on a logarithmic scale) of each attempt, and the place.
    ``shape`` is the width by the height of what the window is resized to; the aspects are relative to it.
    """
    lowest, highest = ASPECT[0] * shape, ASPECT[1] * shape
    for attempt in range(ATTEMPTS):
        u, v = numbers[2 * attempt : 2 * attempt + 2]
        area = width * height * (AREA[0] + u * (AREA[1] - AREA[0]))
        aspect = lowest * (highest / lowest) ** v
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = numbers[2 * ATTEMPTS : 2 * ATTEMPTS + 2]
            left, upper = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, upper, left + w, upper + h
    w = max(min(width, round(height * highest)), 1)
    h = max(min(height, round(width / lowest)), 1)
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def random_crop(images: Tensor, padding: int, numbers: Tensor) -> Tensor:
    """Pad [N, C, H, W] with ``padding`` zeros on each side and cut an H x W window out of each image.

    ``numbers`` [N, 2], from 0 to below 1, say where: a fraction of the 2 ``padding`` + 1 rows, and of the columns.
    """
    n, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    shift = (numbers * (2 * padding + 1)).long()
    rows = (shift[:, :1] + torch.arange(height))[:, :, None]  # [N, H, 1]
    columns = (shift[:, 1:] + torch.arange(width))[:, None, :]  # [N, 1, W]
    windows = padded.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows, columns]  # [N, H, W, C]
    return windows.permute(0, 3, 1, 2).contiguous()


def random_flip(images: Tensor, numbers: Tensor) -> Tensor:
    """Mirror those images of [N, C, H, W] left to right whose ``numbers`` [N], from 0 to below 1, are below 1/2."""
    return torch.where((numbers < 0.5).view(-1, 1, 1, 1), images.flip(-1), images)
