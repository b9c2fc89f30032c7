"""The shared library of the C++ kernels: found, loaded, its C interface declared and its calls checked.

The structures and functions are those of ``kernels/cpp/include/bnnedge/c_api.h``.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from importlib.resources import as_file, files

from bnnedge.errors import BnnedgeError, ConfigError, MissingDependencyError
from bnnedge.kernels.layout import BIT_LAYOUT_VERSION

ABI_VERSION = 4
LIBRARY_NAME = "bnnedge_kernels.dll" if sys.platform == "win32" else "bnnedge_kernels.so"

_OK, _INVALID_ARGUMENT, _UNKNOWN_KERNEL = 0, 1, 2
_ERROR_BYTES = 256


class BConv2dParams(ctypes.Structure):
    """``bnnedge_bconv2d_params``: sizes and settings of a convolution. Padding may differ between opposite sides."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("batch", "in_height", "in_width", "channels", "out_channels", "kernel_height", "kernel_width"),
            *("stride_height", "stride_width", "dilation_height", "dilation_width"),
            *("pad_top", "pad_bottom", "pad_left", "pad_right", "pad_value", "groups"),
        )
    ]


class CTransform(ctypes.Structure):
    """``bnnedge_transform``: an ``OutputTransform`` and its ``Tail``, the arrays by address."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("kind", "doubled_popcount", "nchw", "clamp_low", "clamp_high")),
        *((name, ctypes.c_void_p) for name in ("multiplier", "bias", "threshold")),
        *((name, ctypes.c_int32) for name in ("adds_residual", "writes_bits")),
        *((name, ctypes.c_float) for name in ("low", "high")),
        *((name, ctypes.c_void_p) for name in ("slope", "offset", "limit")),
    ]


class BMaxPool2dParams(ctypes.Structure):
    """``bnnedge_bmaxpool2d_params``: sizes and settings of a max-pool over packed pixels."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("batch", "in_height", "in_width", "words", "kernel_height", "kernel_width"),
            *("stride_height", "stride_width", "pad_top", "pad_left", "out_height", "out_width"),
        )
    ]


@cache
def load_library() -> ctypes.CDLL:
    """The shared library, its functions declared.

    Raises ``MissingDependencyError`` if it was not built, cannot be loaded, or is of another version than this package.
    """
    with as_file(files("bnnedge") / "lib" / LIBRARY_NAME) as path:
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
    _declare(library)
    return library


def _declare(library: ctypes.CDLL) -> None:
    """Argument types of each function, and the result's type where it is not the status, an int32."""
    pointer, count, flag, name = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_char_p
    error = (ctypes.c_char_p, ctypes.c_size_t)
    words, sums = ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_int32)
    conv_params, pool_params = ctypes.POINTER(BConv2dParams), ctypes.POINTER(BMaxPool2dParams)
    arguments = {
        "bnnedge_bconv2d": (conv_params, name, words, count, words, count, sums, count, *error),
        "bnnedge_stem_kernel_name": (name,),
        "bnnedge_conv_create": (
            *(conv_params, pointer, count, ctypes.POINTER(CTransform), name, flag),
            *(ctypes.POINTER(pointer), *error),
        ),
        "bnnedge_conv_destroy": (pointer,),
        "bnnedge_conv_kernel_name": (pointer,),
        "bnnedge_conv_resize": (pointer, count, count, count, *error),
        "bnnedge_conv_run": (pointer, flag, *(pointer, count) * 4, *error),
        "bnnedge_pack": (flag, name, pointer, count, flag, count, count, count, pointer, count, *error),
        "bnnedge_unpack": (name, pointer, count, count, count, pointer, count, *error),
        "bnnedge_bmaxpool2d": (pool_params, pointer, count, pointer, count, *error),
        "bnnedge_peak": (name, count),
    }
    results = {
        "bnnedge_bconv2d_kernel_name": name,
        "bnnedge_stem_kernel_name": name,
        "bnnedge_conv_kernel_name": name,
        "bnnedge_conv_destroy": None,
        "bnnedge_peak": count,
    }
    for function, types in arguments.items():
        getattr(library, function).argtypes = types
    for function, kind in results.items():
        getattr(library, function).restype = kind


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


def stem_kernel_name(kernel: str) -> str:
    """The kernel that int8 stems take where convolutions take ``kernel``, one of ``kernel_names()``."""
    name: bytes | None = load_library().bnnedge_stem_kernel_name(kernel.encode())
    if name is None:
        raise ConfigError(f"kernel {kernel} does not run on this CPU; known: {', '.join(kernel_names())}")
    return name.decode()


def encoded(kernel: str | None) -> bytes | None:
    """A kernel's name as C takes it; None leaves the choice to ``BNNEDGE_KERNEL`` and the library."""
    return None if kernel is None else kernel.encode()


def checked(function: Callable[..., int], *arguments: object) -> None:
    """Call a C function whose last parameters are ``error, error_size``.

    A status other than 0 becomes an exception with the function's sentence: ``ConfigError`` for an invalid argument or
    an unknown kernel, ``BnnedgeError`` for all else.
    """
    message = ctypes.create_string_buffer(_ERROR_BYTES)
    status = function(*arguments, message, _ERROR_BYTES)
    if status == _OK:
        return
    text = message.value.decode(errors="replace")
    if status in (_INVALID_ARGUMENT, _UNKNOWN_KERNEL):
        raise ConfigError(text)
    raise BnnedgeError(f"native kernel failed: {text}")
