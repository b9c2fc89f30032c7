"""The C++ kernels of ``kernels/cpp`` behind ctypes; results equal ``reference.bconv2d`` bit for bit."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import BnnedgeError, ConfigError, MissingDependencyError
from bnnedge.kernels.geometry import BConv2dGeometry, Pair
from bnnedge.kernels.layout import BIT_LAYOUT_VERSION, Words

ABI_VERSION = 1
LIBRARY_NAME = "bnnedge_kernels.dll" if sys.platform == "win32" else "bnnedge_kernels.so"

_OK, _INVALID_ARGUMENT, _UNKNOWN_KERNEL = 0, 1, 2
_ERROR_BYTES = 256


class BConv2dParams(ctypes.Structure):
    """``bnnedge_bconv2d_params`` of ``include/bnnedge/c_api.h``."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("batch", "in_height", "in_width", "channels", "out_channels", "kernel_height", "kernel_width"),
            *("stride_height", "stride_width", "dilation_height", "dilation_width"),
            *("pad_top", "pad_bottom", "pad_left", "pad_right", "pad_value", "groups"),
        )
    ]


@cache
def load_library() -> ctypes.CDLL:
    """The shared library, with argument types set.

    Raises ``MissingDependencyError`` if it was not built, cannot be loaded, or is of another version than this file.
    """
    with as_file(files("bnnedge").joinpath("lib", LIBRARY_NAME)) as path:
        if not path.is_file():
            raise MissingDependencyError(
                "native kernels were not built: install a C++17 compiler and reinstall bnnedge"
            )
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise MissingDependencyError(f"native kernels cannot be loaded, reinstall bnnedge: {error}") from error
    versions = (library.bnnedge_abi_version(), library.bnnedge_bit_layout_version())
    if versions != (ABI_VERSION, BIT_LAYOUT_VERSION):
        raise MissingDependencyError(
            f"native kernels have ABI and bit layout {versions}, expected {(ABI_VERSION, BIT_LAYOUT_VERSION)}; "
            "reinstall bnnedge"
        )
    words, sums = ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_int32)
    count = ctypes.c_int64
    library.bnnedge_bconv2d.argtypes = [
        *(ctypes.POINTER(BConv2dParams), ctypes.c_char_p, words, count, words, count, sums, count),
        *(ctypes.c_char_p, ctypes.c_size_t),
    ]
    library.bnnedge_bconv2d_kernel_name.restype = ctypes.c_char_p
    return library


def available() -> bool:
    """Whether the native kernels were built and can be loaded here."""
    try:
        load_library()
    except MissingDependencyError:
        return False
    return True


def kernel_names() -> list[str]:
    """The kernels that this CPU supports, fastest first; ``BNNEDGE_KERNEL`` takes one of them."""
    library, names = load_library(), list[str]()
    while (name := library.bnnedge_bconv2d_kernel_name(len(names))) is not None:
        names.append(name.decode())
    return names


def bconv2d(
    words: Words,
    filters: Words,
    channels: int,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    pad_value: int = 0,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> NDArray[np.int32]:
    """``reference.bconv2d``, same arguments and result, by the kernel that ``BNNEDGE_KERNEL`` names or the fastest.

    Raises ``ConfigError`` for bad arguments or an unknown kernel name, ``MissingDependencyError`` without the library.
    """
    library = load_library()
    geometry = BConv2dGeometry.check(words, filters, channels, stride, padding, pad_value, dilation, groups)
    sums = np.empty(geometry.output_shape, np.int32)
    call(library, to_params(geometry), words, filters, sums)
    return sums


def to_params(geometry: BConv2dGeometry) -> BConv2dParams:
    """The C struct of a checked geometry."""
    return BConv2dParams(
        batch=geometry.batch,
        in_height=geometry.height,
        in_width=geometry.width,
        channels=geometry.channels,
        out_channels=geometry.out_channels,
        kernel_height=geometry.kernel[0],
        kernel_width=geometry.kernel[1],
        stride_height=geometry.stride[0],
        stride_width=geometry.stride[1],
        dilation_height=geometry.dilation[0],
        dilation_width=geometry.dilation[1],
        pad_top=geometry.padding[0],
        pad_bottom=geometry.padding[0],
        pad_left=geometry.padding[1],
        pad_right=geometry.padding[1],
        pad_value=geometry.pad_value,
        groups=geometry.groups,
    )


def call(
    library: ctypes.CDLL,
    params: BConv2dParams,
    words: Words,
    filters: Words,
    sums: NDArray[np.int32],
    kernel: str | None = None,
) -> None:
    """One call of ``bnnedge_bconv2d`` into ``sums``, which must be contiguous; the library checks all sizes."""
    words, filters = np.ascontiguousarray(words), np.ascontiguousarray(filters)
    as_words, as_sums = ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_int32)
    message = ctypes.create_string_buffer(_ERROR_BYTES)
    status = library.bnnedge_bconv2d(
        ctypes.byref(params),
        None if kernel is None else kernel.encode(),
        words.ctypes.data_as(as_words),
        words.size,
        filters.ctypes.data_as(as_words),
        filters.size,
        sums.ctypes.data_as(as_sums),
        sums.size,
        message,
        _ERROR_BYTES,
    )
    if status == _OK:
        return
    text = message.value.decode(errors="replace")
    if status in (_INVALID_ARGUMENT, _UNKNOWN_KERNEL):
        raise ConfigError(text)
    raise BnnedgeError(f"native kernel failed: {text}")
