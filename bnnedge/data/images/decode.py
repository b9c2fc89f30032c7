"""The pixels of images in files, upright and in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from PIL import Image

from bnnedge.data.images.at_once import AtOnce
from bnnedge.data.images.formats import opened
from bnnedge.data.images.white_level import DEEP, WhiteLevel
from bnnedge.errors import DataError, printable
from bnnedge.memory import check_memory

_GREY = DEEP | {"1", "L", "LA", "La"}
_ORIENTATION = 0x0112
"""The EXIF tag by which a camera says how it was held."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by the value of that tag; 1 is upright."""
_PIXEL_BYTES = 8
"""Memory for each pixel while an image is decoded: it is there twice, with four bytes each."""
_LARGE = 2**24
"""Pixels from which on it is worth the time to ask how much memory there is."""
_AT_ONCE = AtOnce(2**26)
"""Pixels that all threads together decode at once; an image that has more is decoded alone."""


@contextmanager
def decoded(path: str, channels: int, white: WhiteLevel) -> Iterator[Image.Image]:
    """The image in the file ``path``, grey for 1 and in colour for 3 ``channels``, 8 bits each.

    It is turned upright if the file says how the camera was held. Transparency is dropped. Raises ``DataError`` that
    names the file if it is damaged, no image, or larger than the memory.
    """
    with ExitStack() as held:
        with opened(path) as image:
            held.enter_context(_AT_ONCE.share(image.width * image.height))
            _check_size(image, path)
            upright = _in_eight_bits(image, path, "L" if channels == 1 else "RGB", white)
        del image
        yield upright


def is_grey(path: str) -> bool:
    """Whether the image in the file ``path`` has no colour, by its header. Raises ``DataError`` as ``decoded`` does."""
    with opened(path) as image:
        return image.mode in _GREY


def _check_size(image: Image.Image, path: str) -> None:
    pixels = image.width * image.height
    if pixels >= _LARGE:
        what = f"{printable(path)}, an image of {image.width}x{image.height} pixels,"
        check_memory(_PIXEL_BYTES * pixels, what, DataError)


def _in_eight_bits(image: Image.Image, path: str, mode: str, white: WhiteLevel) -> Image.Image:
    white.tell_of_lost_bits(image, path)
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    if image.mode in DEEP:
        image = white.in_eight_bits(image, path)
    if image.mode != mode:
        image = image.convert(mode)
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """The orientation that the file notes; 1 if that part of the file is damaged, since the pixels may be sound."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises anything
        return 1
