"""Which files are images that Pillow decodes, and how they are opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from PIL import Image

from bnnedge.errors import DataError, one_line, printable
from bnnedge.files import open_regular

_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow hands to other programs, which is not safe with files of anybody's, or only recognises."""


@cache
def suffixes() -> frozenset[str]:
    """How the names of images end that can be decoded here, in lower case with their dot."""
    known = Image.registered_extensions()
    # Files of the format MPO, several photographs in one, are opened as JPEG.
    return frozenset(suffix for suffix, name in known.items() if name in _formats() or name == "MPO")


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """The image in the file ``path``, of which the header has been read.

    Whatever goes wrong with the file inside of ``with`` becomes a ``DataError`` that names it.
    """
    with open_regular(Path(path), DataError) as file:
        try:
            yield Image.open(file, formats=_formats_of(os.path.splitext(path)[1].lower()))
        except DataError:
            raise
        except Image.DecompressionBombError as error:
            raise DataError(
                f"{printable(path)} has more pixels than an image should ({one_line(error)}); make it smaller or "
                "remove this file"
            ) from error
        except MemoryError as error:
            raise DataError(
                f"{printable(path)} needs more memory than there is; make the image smaller or remove this file"
            ) from error
        except Exception as error:  # damage makes Pillow raise anything
            raise DataError(
                f"{printable(path)} is damaged or no image ({one_line(error)}); replace or remove this file"
            ) from error


@cache
def _formats() -> tuple[str, ...]:
    """The names of the formats that are decoded here."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _NOT_DECODED)


@cache
def _formats_of(suffix: str) -> tuple[str, ...]:
    """The formats that a file may have whose name ends in ``suffix``, with the one that it should have first.

    Formats whose files have no mark at their beginning are not among the others: a damaged file could pass for one.
    """
    own = Image.registered_extensions().get(suffix)
    marked = [name for name in _formats() if Image.OPEN[name][1] is not None and name != own]
    return (own, *marked) if own in _formats() else tuple(marked)
