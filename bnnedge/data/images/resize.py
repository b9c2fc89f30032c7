"""Images of another size, and the part of an image that is read."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from bnnedge.data.preprocessing import Preprocessing
from bnnedge.errors import ConfigError
from bnnedge.memory import check_memory

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge of a part of an image, in pixels."""
_CHUNK = 256
"""Images that are resized at a time, which bounds the memory of their float copies."""
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


def central_box(width: int, height: int, record: Preprocessing) -> Box | None:
    """The part of a ``width`` x ``height`` image that ``record`` reads; None for the whole."""
    if record.crop is None:
        return None
    fitting = min(height, width * record.height / record.width)
    rows = record.crop * fitting
    columns = record.crop * fitting * record.width / record.height
    left, upper = (width - columns) / 2, (height - rows) / 2
    return left, upper, left + columns, upper + rows


def resize_images(images: Tensor, record: Preprocessing) -> Tensor:
    """Stored images [N, C, H, W] to the geometry of ``record``, with pixel centres aligned, smoothed if smaller.

    A crop is cut at whole pixels first. uint8 images stay uint8, rounded to the nearest value.
    """
    box = central_box(images.shape[-1], images.shape[-2], record)
    if box is not None:
        left, upper, right, lower = map(round, box)
        images = images[:, :, upper : max(lower, upper + 1), left : max(right, left + 1)]
    if images.shape[-2:] == record.size:
        return images
    size = len(images) * images.shape[1] * record.height * record.width
    what = f"the data set in memory, {len(images)} images of {record.height}x{record.width} pixels,"
    check_memory(size * images.element_size(), what, ConfigError)
    shrinks = record.height < images.shape[-2] or record.width < images.shape[-1]
    options = {} if record.resize == "nearest" else {"align_corners": False, "antialias": shrinks}
    resized = images.new_empty((*images.shape[:2], *record.size))
    for images_of_chunk, out in zip(torch.split(images, _CHUNK), torch.split(resized, _CHUNK), strict=True):
        floats = F.interpolate(images_of_chunk.float(), size=record.size, mode=record.resize, **options)
        out.copy_(floats.round_().clamp_(0, 255) if images.dtype == torch.uint8 else floats)
    return resized


def resize_image(image: Image.Image, record: Preprocessing, box: Box | None) -> Image.Image:
    """The part ``box`` of a decoded image (None: the whole) in the size of ``record``."""
    size = record.width, record.height
    if box is None and image.size == size:
        return image
    return image.resize(size, _FILTERS[record.resize], box=box)
