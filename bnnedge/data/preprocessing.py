"""How a stored image becomes a network's input, as a record of plain values that travels with the network.

A checkpoint and an exported file carry the record that the network was trained with, and every reader applies it:
``evaluate`` of a run and of a file, ``bench``, and the program that measures on a device. None assumes values of its
own. Importing this file imports no torch.

``--preprocess NAME`` chooses a function of ``PREPROCESSINGS`` (``bnnedge/data/__init__.py``). It takes the data set's
own record, with the statistics of its training images, and returns the record to train with.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field

from bnnedge.data import PREPROCESSINGS
from bnnedge.errors import ConfigError, DataError
from bnnedge.options import plain
from bnnedge.schema import check

MOST_PIXELS = 2**28
"""Numbers of one image, all channels together."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's red, green and blue, of pixels from 0 to 1."""


_Size = Annotated[int, Field(ge=1, le=2**16)]
# The ranges keep every quotient in float32.
_Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
_Divisor = Annotated[float, Field(ge=1e-9, le=1e9)]


@dataclass(frozen=True)
class Preprocessing:
    """The network's input is ``(pixel / scale - mean) / std``, of ``height`` x ``width`` pixels."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    channels: _Size
    """Channels of an image: 1 for grey, 3 for red, green and blue in this order."""
    height: _Size
    """Rows of pixels that the network takes."""
    width: _Size
    """Columns of pixels that the network takes."""
    scale: _Divisor
    """The stored value that counts as 1: 255 where pixels are bytes."""
    mean: tuple[_Mean, ...]
    """Mean of each channel, of pixels that were divided by ``scale``."""
    std: tuple[_Divisor, ...]
    """Standard deviation of each channel, of pixels that were divided by ``scale``."""
    resize: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    """Interpolation where an image has another size."""
    crop: float | None = None
    """None: the whole image is resized. Otherwise its central part with the network's aspect ratio is, as large as
    fits into the image times this number: 0.875 is what 224 of 256 pixels leave."""
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    """The order of the axes in which a file takes a batch of images. ``normalize`` always works on NCHW, and the
    runtimes of ``bnnedge/export/runtimes`` put the axes in the file's order."""

    def __post_init__(self) -> None:
        for name in ("channels", "height", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ConfigError(f"{name} must be {self.channels} numbers, one a channel, got {getattr(self, name)}")
        if not self.scale > 0 or min(self.std) <= 0:
            raise ConfigError(f"scale and std must be above 0, got {self.scale} and {self.std}")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise ConfigError(f"crop must be above 0 and at most 1, got {self.crop}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.height, self.width

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of one input."""
        return self.channels, self.height, self.width

    @property
    def geometry(self) -> tuple[int, int, str, float | None]:
        """What decides which pixels of a stored image are read: size, interpolation and crop."""
        return self.height, self.width, self.resize, self.crop

    @property
    def input_range(self) -> tuple[float, float]:
        """The smallest and the largest input that a pixel from 0 to ``scale`` can give, in any channel."""
        ends = [(-mean / std, (1 - mean) / std) for mean, std in zip(self.mean, self.std, strict=True)]
        return min(black for black, _ in ends), max(white for _, white in ends)

    def normalize(self, pixels: Any) -> Any:
        """float32 inputs [N, C, H, W] of stored pixels of this geometry, a NumPy array or a PyTorch tensor.

        Both libraries round alike, so the results are the same to the bit. PyTorch's are of its default type, if the
        user has set another one.
        """
        if isinstance(pixels, np.ndarray):
            floats = pixels.astype(np.float32)
            mean, std = (np.array(v, np.float32).reshape(1, -1, 1, 1) for v in (self.mean, self.std))
            return (floats / np.float32(self.scale) - mean) / std
        import torch

        shift, spread = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (pixels.float() / self.scale - shift) / spread

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and checkpoints hold them."""
        return plain(self)

    @classmethod
    def from_dict(cls, values: Any) -> Preprocessing:
        """Inverse of ``to_dict``. Raises ``DataError`` for a field that is missing, unknown or of a wrong type."""
        if not isinstance(values, Mapping):
            raise DataError(f"the preprocessing record must be a mapping, found a {type(values).__name__}")
        required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        if missing := [name for name in required if name not in values]:
            raise DataError(f"the preprocessing record lacks {', '.join(missing)}")
        try:
            record = check(dict(values), cls, "the preprocessing record is not valid", DataError)
        except ConfigError as error:
            raise DataError(f"the preprocessing record is not valid: {error}") from error
        if math.prod(record.input_shape) > MOST_PIXELS:
            raise DataError(
                f"the preprocessing record is not valid: expected an image of at most {MOST_PIXELS:,} numbers, found "
                f"{list(record.input_shape)}"
            )
        return record


def own(record: Preprocessing) -> Preprocessing:
    """Mean and standard deviation of the data set's own training images, or those that are published for it."""
    return record


def unit(record: Preprocessing) -> Preprocessing:
    """Inputs from 0 to 1, ``pixel / 255``."""
    return dataclasses.replace(record, mean=(0.0,) * record.channels, std=(1.0,) * record.channels)


def symmetric(record: Preprocessing) -> Preprocessing:
    """Inputs from -1 to 1, ``pixel / 127.5 - 1``."""
    return dataclasses.replace(record, mean=(0.5,) * record.channels, std=(0.5,) * record.channels)


def imagenet(record: Preprocessing) -> Preprocessing:
    """ImageNet's mean and standard deviation, which published networks use for other colour images too."""
    if record.channels != 3:
        raise ConfigError(f"preprocessing imagenet is for images of 3 channels, these have {record.channels}")
    return dataclasses.replace(record, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def choose(name: str, own_record: Preprocessing) -> Preprocessing:
    """The record that the preprocessing ``name`` makes of a data set's own one."""
    record = PREPROCESSINGS.load(name)(own_record)
    assert isinstance(record, Preprocessing)
    return record


def from_old_description(dataset: str, values: Mapping[str, Any]) -> Preprocessing:
    """The record of a data set as it was described before there were such records.

    Images were square then; digits came as numbers from 0 to 1 that had been 0 to 16, all others as bytes.
    """
    size = values.get("image_size")
    numbers = {name: values.get(name) for name in ("mean", "std")}
    crop = 224 / 256 if dataset == "imagenet" else None
    scale = 16.0 if dataset == "digits" else 255.0
    return Preprocessing.from_dict(
        {"channels": values.get("in_channels"), "height": size, "width": size, "scale": scale, "crop": crop, **numbers}
    )
