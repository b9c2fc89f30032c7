"""Images in files: which of them can be decoded, and their pixels in 8 bits."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bnnedge.errors import BnnedgeWarning, DataError, one_line, printable
from bnnedge.files import open_regular

_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow hands to other programs, which is not safe with files of anybody's, or only recognises."""
_DEEP = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
"""Pillow's modes of greyscale with more than 8 bits."""
_GREY = _DEEP | {"1", "L", "LA", "La"}
_NEVER_DEEP = (".jpg", ".jpeg")
_BITS = (8, 10, 12, 14, 16, 32)
"""Bits that cameras and scanners fill."""


@cache
def formats() -> tuple[str, ...]:
    """The names of the formats that are decoded here."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _NOT_DECODED)


@cache
def suffixes() -> frozenset[str]:
    """How the names of images end that can be decoded here, in lower case with their dot."""
    Image.init()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats())


def decode(path: str, channels: int, white: WhiteLevel) -> Image.Image:
    """The image in the file ``path``, grey for 1 and in colour for 3 ``channels``, 8 bits each.

    Transparency is ignored. Raises ``DataError`` that names a file which is damaged or no image.
    """
    with _opened(path) as image:
        eight_bits = white.in_eight_bits(image) if image.mode in _DEEP else image
        return eight_bits.convert("L" if channels == 1 else "RGB")


def is_grey(path: str) -> bool:
    """Whether the image in the file ``path`` has no colour, by its header. Raises ``DataError`` as ``decode`` does."""
    with _opened(path) as image:
        return image.mode in _GREY


class WhiteLevel:
    """The value that counts as white in greyscale images of more than 8 bits.

    Their files do not say how many of the bits are used: a camera of 12 bits writes 16 for each pixel. So it is the
    highest value of the smallest usual number of bits which holds all training images; for floating-point images that
    do not exceed 1, it is 1.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        """``paths`` are the training images, which are looked at when the first such image is met."""
        self._paths = paths
        self._lock = threading.Lock()
        self._levels: dict[bool, float] | None = None

    def in_eight_bits(self, image: Image.Image) -> Image.Image:
        """``image`` with its brightness as a share of white; what is brighter becomes white."""
        values = _values(image)
        with self._lock:
            if self._levels is None:
                self._levels = self._measure()
        level = self._levels.get(image.mode == "F") or _white_of(float(values.max()), image.mode == "F")
        return Image.fromarray(np.rint(np.clip(values / level, 0, 1) * 255).astype(np.uint8))

    def _measure(self) -> dict[bool, float]:
        brightest: dict[bool, tuple[float, str]] = {}
        for path in self._paths:
            if path.lower().endswith(_NEVER_DEEP):
                continue
            with _opened(path) as image:
                if image.mode in _DEEP:
                    found = float(_values(image).max()), path
                    brightest[image.mode == "F"] = max(found, brightest.get(image.mode == "F", found))
        levels = {}
        for is_float, (value, path) in brightest.items():
            levels[is_float] = _white_of(value, is_float)
            warnings.warn(
                f"greyscale of more than 8 bits: {levels[is_float]:g} counts as white, since the brightest pixel of "
                f"the training images is {value:g} ({printable(path)})",
                BnnedgeWarning,
                stacklevel=2,
            )
        return levels


def _values(image: Image.Image) -> NDArray[Any]:
    """The pixels, of which those that are no number count as black."""
    return np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)


def _white_of(brightest: float, is_float: bool) -> float:
    if is_float and brightest <= 1:
        return 1.0
    return next((2.0**bits - 1 for bits in _BITS if brightest < 2**bits), brightest)


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """The image in a file, whose pixels may be read inside of ``with``."""
    with open_regular(Path(path), DataError) as file:
        try:
            with Image.open(file, formats=formats()) as image:
                yield image
        except DataError:
            raise
        except Exception as error:  # damage makes Pillow raise anything
            raise DataError(
                f"{printable(path)} is damaged or no image ({one_line(error)}); replace or remove this file"
            ) from error
