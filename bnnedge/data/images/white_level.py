"""What counts as white in images of more than 8 bits."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bnnedge.data.images.formats import opened
from bnnedge.errors import BnnedgeWarning, DataError, printable

DEEP = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
"""Pillow's modes of greyscale with more than 8 bits."""
_BITS = (8, 10, 12, 14, 16, 32)
"""Bits that cameras and scanners fill."""
_BAND_PIXELS = 2**20
"""Pixels that are computed with at once, as float64."""


class WhiteLevel:
    """The value that counts as white in greyscale images of more than 8 bits.

    Their files do not say how many of the bits are used: a camera of 12 bits writes 16 for each pixel. So it is the
    highest value of the smallest usual number of bits which holds all training images; for floating-point images that
    do not exceed 1, it is 1. Threads may share a white level.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        """``paths`` are the training images, which are looked at when the first such image is met."""
        self._paths = paths
        self._lock = threading.Lock()
        self._levels: dict[bool, float] | None = None
        self._said: set[str] = set()

    def in_eight_bits(self, image: Image.Image, path: str) -> Image.Image:
        """``image`` with its brightness as a share of white; what is brighter becomes white, which a warning says."""
        level = self._level_of(image, path)
        pixels = np.empty((image.height, image.width), np.uint8)
        brightest = 0.0
        for top, values in _bands(image):
            brightest = max(brightest, float(values.max()))
            shares = np.clip(values / level, 0, 1)
            pixels[top : top + len(values)] = np.rint(shares * 255, out=shares)
        if brightest > level:
            self._warn_once(
                "brighter",
                f"{printable(path)}: its brightest pixel is {brightest:g}, and {level:g} counts as white, as the "
                "training images have it; what is brighter becomes white, in this image and in others",
            )
        return Image.fromarray(pixels)

    def tell_of_lost_bits(self, image: Image.Image, path: str) -> None:
        """Warn if ``image``, which is not loaded yet, has colours of 16 bits, of which Pillow keeps the upper 8."""
        raw_modes = [str(tile[3]) for tile in getattr(image, "tile", ())]
        if image.mode not in DEEP and any(";16" in mode for mode in raw_modes):
            self._warn_once(
                "lost bits",
                f"{printable(path)}: of colours of 16 bits the upper 8 are read, in this image and in others; if your "
                "camera fills fewer bits, they are too dark: convert them to 8 bits",
            )

    def _level_of(self, image: Image.Image, path: str) -> float:
        with self._lock:
            if self._levels is None:
                self._levels = self._measure()
        level = self._levels.get(image.mode == "F")
        if level is None:
            raise DataError(
                f"{printable(path)} is greyscale of {'floating point' if image.mode == 'F' else 'more than 8 bits'}, "
                "as no training image is, so nothing says which value is white; convert it to 8 bits"
            )
        return level

    def _measure(self) -> dict[bool, float]:
        """The white of integers (False) and of floating-point numbers (True), of those that occur."""
        brightest: dict[bool, tuple[float, str]] = {}
        for path in self._paths:
            with opened(path) as image:
                if image.mode in DEEP:
                    found = _brightest(image), path
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

    def _warn_once(self, kind: str, text: str) -> None:
        with self._lock:
            if kind in self._said:
                return
            self._said.add(kind)
        warnings.warn(text, BnnedgeWarning, stacklevel=2)


def _bands(image: Image.Image) -> Iterator[tuple[int, NDArray[Any]]]:
    """The first row and the pixels of each part of an image. Pixels that are no number count as black."""
    rows = max(1, _BAND_PIXELS // max(image.width, 1))
    for top in range(0, image.height, rows):
        values = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        yield top, np.nan_to_num(values, posinf=0, neginf=0) if image.mode == "F" else values


def _brightest(image: Image.Image) -> float:
    return max((float(values.max()) for _, values in _bands(image)), default=0.0)


def _white_of(brightest: float, is_float: bool) -> float:
    if is_float and brightest <= 1:
        return 1.0
    return next((2.0**bits - 1 for bits in _BITS if brightest < 2**bits), brightest)
