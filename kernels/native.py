"""The C++ kernels of ``kernels/cpp`` behind ctypes; results equal those of ``reference.py`` bit for bit.

``bconv2d`` is one call. ``Conv`` is prepared once and run many times, with the output transforms that deployed models
need; ``pack_nhwc``, ``pack_nchw``, ``unpack_nhwc`` and ``bmaxpool2d`` surround it.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import as_file, files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import BnnedgeError, ConfigError, MissingDependencyError
from bnnedge.kernels.geometry import BConv2dGeometry, Pair, check_pool
from bnnedge.kernels.layout import BIT_LAYOUT_VERSION, Words, words_for

ABI_VERSION = 4
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


_KINDS: dict[str, tuple[int, type[np.generic]]] = {
    "sums": (0, np.int32),
    "float": (1, np.float32),
    "int8": (2, np.int8),
    "bits": (3, np.uint32),
}


@dataclass(frozen=True)
class Tail:
    """The rest of a residual block after a float NHWC output y; ``Tail`` of ``include/bnnedge/conv.h``.

    In this order, each step rounded by itself: add the residual; ``y = y < 0 ? slope * y : y``; add ``offset``;
    ``min(max(y, low), high)``. With ``writes_bits`` there is a second output, packed, bit 1 where ``y < limit``.
    ``slope``, ``offset`` and ``limit`` are float32 [O] or None: no PReLU, no offset, 0.
    """

    adds_residual: bool = False
    slope: NDArray[np.float32] | None = None
    offset: NDArray[np.float32] | None = None
    low: float = -np.inf
    high: float = np.inf
    writes_bits: bool = False
    limit: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Transform:
    """What ``Conv`` makes of its sums; ``Transform`` of ``include/bnnedge/conv.h``.

    With s the sum of +-1 products and K their number, v = s, or v = K - s in the ``doubled_popcount`` domain.

    ``kind``        "sums": int32 v; "float": clamp(v) * multiplier + bias, product and sum rounded apart; "int8": the
                    same rounded half away from zero and saturated; "bits": packed, bit 1 where v < threshold (in the
                    doubled domain v > threshold)
    ``nchw``        of a float output; all others are NHWC
    ``multiplier``, ``bias``  float32 [O], float and int8
    ``threshold``   int32 [O], bits
    """

    kind: str = "sums"
    doubled_popcount: bool = False
    nchw: bool = False
    clamp: tuple[int, int] = (-(2**31), 2**31 - 1)
    multiplier: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None
    threshold: NDArray[np.int32] | None = None
    tail: Tail = Tail()


class _Transform(ctypes.Structure):
    """``bnnedge_transform`` of ``include/bnnedge/c_api.h``."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("kind", "doubled_popcount", "nchw", "clamp_low", "clamp_high")),
        *((name, ctypes.c_void_p) for name in ("multiplier", "bias", "threshold")),
        *((name, ctypes.c_int32) for name in ("adds_residual", "writes_bits")),
        *((name, ctypes.c_float) for name in ("low", "high")),
        *((name, ctypes.c_void_p) for name in ("slope", "offset", "limit")),
    ]


class _BMaxPool2dParams(ctypes.Structure):
    """``bnnedge_bmaxpool2d_params`` of ``include/bnnedge/c_api.h``."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("batch", "in_height", "in_width", "words", "kernel_height", "kernel_width"),
            *("stride_height", "stride_width", "pad_top", "pad_left", "out_height", "out_width"),
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
    library.bnnedge_stem_kernel_name.argtypes = [ctypes.c_char_p]
    library.bnnedge_stem_kernel_name.restype = ctypes.c_char_p
    pointer, name, message = ctypes.c_void_p, ctypes.c_char_p, (ctypes.c_char_p, ctypes.c_size_t)
    library.bnnedge_conv_create.argtypes = [
        *(ctypes.POINTER(BConv2dParams), pointer, count, ctypes.POINTER(_Transform), name, ctypes.c_int32),
        *(ctypes.POINTER(pointer), *message),
    ]
    library.bnnedge_conv_destroy.argtypes = [pointer]
    library.bnnedge_conv_destroy.restype = None
    library.bnnedge_conv_kernel_name.argtypes = [pointer]
    library.bnnedge_conv_kernel_name.restype = ctypes.c_char_p
    library.bnnedge_conv_resize.argtypes = [pointer, count, count, count, *message]
    library.bnnedge_conv_run.argtypes = [pointer, ctypes.c_int32, *(pointer, count) * 4, *message]
    library.bnnedge_pack.argtypes = [
        *(ctypes.c_int32, name, pointer, count, ctypes.c_int32, count, count, count, pointer, count),
        *message,
    ]
    library.bnnedge_unpack.argtypes = [name, pointer, count, count, count, pointer, count, *message]
    library.bnnedge_bmaxpool2d.argtypes = [ctypes.POINTER(_BMaxPool2dParams), pointer, count, pointer, count, *message]
    library.bnnedge_peak.argtypes = [name, count]
    library.bnnedge_peak.restype = count
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


def stem_kernel_name(kernel: str) -> str:
    """The kernel that int8 stems take where convolutions take ``kernel``, one of ``kernel_names()``."""
    name: bytes | None = load_library().bnnedge_stem_kernel_name(kernel.encode())
    if name is None:
        raise ConfigError(f"kernel {kernel} does not run on this CPU; known: {', '.join(kernel_names())}")
    return name.decode()


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
    _checked(
        library.bnnedge_bconv2d,
        ctypes.byref(params),
        _encoded(kernel),
        words.ctypes.data_as(as_words),
        words.size,
        filters.ctypes.data_as(as_words),
        filters.size,
        sums.ctypes.data_as(as_sums),
        sums.size,
    )


class Conv:
    """A convolution prepared once and run many times; ``Conv`` of ``include/bnnedge/conv.h``.

    ``params``   as ``to_params`` makes them; batch, height and width are only the first ones
    ``filters``  uint32 [O, kh, kw, ceil(C/groups/32)]; copied
    ``kernel``   one of ``kernel_names()``; None: ``BNNEDGE_KERNEL``, else the fastest

    Not to be called from several threads at once. Raises ``ConfigError``, ``MissingDependencyError``.
    """

    def __init__(
        self,
        params: BConv2dParams,
        filters: Words,
        transform: Transform | None = None,
        *,
        kernel: str | None = None,
        threads: int = 1,
    ) -> None:
        transform = transform or Transform()
        if transform.kind not in _KINDS:
            raise ConfigError(f"transform kind is one of {', '.join(_KINDS)}, got {transform.kind}")
        number, self._dtype = _KINDS[transform.kind]
        self._library = load_library()
        channels = self._out_channels = params.out_channels
        self._bits, self._nchw = transform.kind == "bits", transform.nchw
        self._shape = (params.batch, params.in_height, params.in_width)
        self._params = params
        filters = _typed("filters", filters, np.uint32)
        tail = self._tail = transform.tail
        arrays = {
            name: _per_channel(name, getattr(owner, name), np.int32 if name == "threshold" else np.float32, channels)
            for owner, names in ((transform, ("multiplier", "bias", "threshold")), (tail, ("slope", "offset", "limit")))
            for name in names
        }
        c_transform = _Transform(
            kind=number,
            doubled_popcount=int(transform.doubled_popcount),
            nchw=int(transform.nchw),
            clamp_low=transform.clamp[0],
            clamp_high=transform.clamp[1],
            adds_residual=int(tail.adds_residual),
            writes_bits=int(tail.writes_bits),
            low=tail.low,
            high=tail.high,
            **{name: None if array is None else array.ctypes.data for name, array in arrays.items()},
        )
        handle = ctypes.c_void_p()
        _checked(
            self._library.bnnedge_conv_create,
            ctypes.byref(params),
            filters.ctypes.data,
            filters.size,
            ctypes.byref(c_transform),
            _encoded(kernel),
            threads,
            ctypes.byref(handle),
        )
        self._handle = handle
        weakref.finalize(self, self._library.bnnedge_conv_destroy, handle)

    @property
    def kernel(self) -> str:
        """Name of the kernel that runs."""
        name: bytes = self._library.bnnedge_conv_kernel_name(self._handle)
        return name.decode()

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of the current input size: [N, OH, OW, O], [N, O, OH, OW], or for bits [N, OH, OW, ceil(O/32)]."""
        p = self._params
        sizes = (
            (self._shape[1], p.kernel_height, p.stride_height, p.pad_top + p.pad_bottom, p.dilation_height),
            (self._shape[2], p.kernel_width, p.stride_width, p.pad_left + p.pad_right, p.dilation_width),
        )
        height, width = ((size + pads - d * (k - 1) - 1) // step + 1 for size, k, step, pads, d in sizes)
        if self._nchw:
            return (self._shape[0], self._out_channels, height, width)
        last = words_for(self._out_channels) if self._bits else self._out_channels
        return (self._shape[0], height, width, last)

    def __call__(
        self,
        x: NDArray[Any],
        out: NDArray[Any] | None = None,
        *,
        residual: NDArray[np.float32] | None = None,
        bits: Words | None = None,
    ) -> NDArray[Any]:
        """Packed words uint32 [N, H, W, ceil(C/32)], or float32 [N, H, W, C], whose signs are packed first, to the
        transform's output, written into ``out`` if that is given.

        ``residual`` (float32, shape of the output, may be ``out``) is what the tail adds; ``bits`` (uint32
        [N, OH, OW, ceil(O/32)]) takes what it packs.
        """
        if x.dtype not in (np.uint32, np.float32) or x.ndim != 4:
            raise ConfigError(
                f"the input must be uint32 [N, H, W, ceil(C/32)] or float32 [N, H, W, C], got {x.dtype} {x.shape}"
            )
        x = np.ascontiguousarray(x)
        if x.shape[:3] != self._shape:
            _checked(self._library.bnnedge_conv_resize, self._handle, *x.shape[:3])
            self._shape = (x.shape[0], x.shape[1], x.shape[2])
        if out is None:
            out = np.empty(self.output_shape, self._dtype)
        _check_array("out", out, self._dtype, self.output_shape)
        if (residual is not None) != self._tail.adds_residual or (bits is not None) != self._tail.writes_bits:
            raise ConfigError("residual and bits must be given if the tail has them, and only then")
        if residual is not None:
            _check_array("residual", residual, np.float32, self.output_shape)
        if bits is not None:
            _check_array("bits", bits, np.uint32, (*self.output_shape[:3], words_for(self._out_channels)))
        _checked(self._library.bnnedge_conv_run, self._handle, *_run_arguments(x, out, residual, bits))
        return out

    def bind(
        self,
        x: NDArray[Any],
        out: NDArray[Any],
        *,
        residual: NDArray[np.float32] | None = None,
        bits: Words | None = None,
    ) -> Callable[[], None]:
        """A function that runs once more on these contiguous arrays without looking at them again: for timing."""
        if not x.flags.c_contiguous:
            raise ConfigError("bind needs a contiguous input")
        self(x, out, residual=residual, bits=bits)
        function, arguments = self._library.bnnedge_conv_run, _run_arguments(x, out, residual, bits)
        values = (self._handle, *arguments, None, 0)
        call = partial(
            function, *(t(v) if type(v) is int else v for t, v in zip(function.argtypes, values, strict=True))
        )

        def run(_alive: tuple[object, ...] = (self, x, out, residual, bits)) -> None:
            call()

        return run


def _run_arguments(
    x: NDArray[Any], out: NDArray[Any], residual: NDArray[np.float32] | None, bits: Words | None
) -> tuple[int | None, ...]:
    tail = [(None, 0) if array is None else (array.ctypes.data, array.size) for array in (residual, bits)]
    return (int(x.dtype == np.float32), x.ctypes.data, x.size, out.ctypes.data, out.nbytes, *tail[0], *tail[1])


def pack_nhwc(
    values: NDArray[Any], *, zero_point: int = 0, kernel: str | None = None, out: Words | None = None
) -> Words:
    """``layout.pack`` of float32 or int8 [..., C]; int8 values are compared with ``zero_point`` instead of 0.

    ``out`` takes the words if it is given.
    """
    values = np.ascontiguousarray(values)
    if values.dtype not in (np.float32, np.int8) or values.ndim == 0 or values.size == 0:
        raise ConfigError(f"pack_nhwc takes float32 or int8 [..., C], got {values.dtype} {values.shape}")
    channels = values.shape[-1]
    words = _buffer(out, (*values.shape[:-1], words_for(channels)), np.uint32)
    source = 1 if values.dtype == np.int8 else 0
    _pack(source, kernel, values, zero_point, 1, values.size // channels, channels, words)
    return words


def pack_nchw(values: NDArray[np.float32], *, kernel: str | None = None) -> Words:
    """float32 [N, C, H, W] to uint32 [N, H, W, ceil(C/32)]."""
    values = np.ascontiguousarray(values)
    if values.dtype != np.float32 or values.ndim != 4 or values.size == 0:
        raise ConfigError(f"pack_nchw takes float32 [N, C, H, W], got {values.dtype} {values.shape}")
    batch, channels, height, width = values.shape
    words = np.empty((batch, height, width, words_for(channels)), np.uint32)
    _pack(2, kernel, values, 0, batch, height * width, channels, words)
    return words


def _pack(
    source: int,
    kernel: str | None,
    values: NDArray[Any],
    zero_point: int,
    batch: int,
    pixels: int,
    channels: int,
    words: Words,
) -> None:
    _checked(
        load_library().bnnedge_pack,
        source,
        _encoded(kernel),
        values.ctypes.data,
        values.size,
        zero_point,
        batch,
        pixels,
        channels,
        words.ctypes.data,
        words.size,
    )


def unpack_nhwc(
    words: Words, channels: int, *, kernel: str | None = None, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """``layout.unpack`` to float32; ``out`` takes the values if it is given."""
    words = _typed("words", words, np.uint32)
    if words.ndim == 0 or channels < 1 or words.shape[-1] != words_for(channels):
        raise ConfigError(f"{channels} channels do not take words of shape {words.shape}")
    values = _buffer(out, (*words.shape[:-1], channels), np.float32)
    pixels = values.size // channels
    _checked(
        load_library().bnnedge_unpack,
        _encoded(kernel),
        words.ctypes.data,
        words.size,
        pixels,
        channels,
        values.ctypes.data,
        values.size,
    )
    return values


def bmaxpool2d(words: Words, *, kernel: Pair, stride: Pair, padding: Pair = (0, 0)) -> Words:
    """``reference.bmaxpool2d``, same arguments and result."""
    out_height, out_width = check_pool(words, kernel, stride, padding)
    words = np.ascontiguousarray(words)
    batch, height, width, count = words.shape
    out = np.empty((batch, out_height, out_width, count), np.uint32)
    params = _BMaxPool2dParams(batch, height, width, count, *kernel, *stride, *padding, out_height, out_width)
    _checked(
        load_library().bnnedge_bmaxpool2d,
        ctypes.byref(params),
        words.ctypes.data,
        words.size,
        out.ctypes.data,
        out.size,
    )
    return out


def peak(rounds: int, kernel: str | None = None) -> int:
    """Run the kernel's inner loop on registers; returns its binary multiply-adds, 0 if it has no such loop."""
    return int(load_library().bnnedge_peak(_encoded(kernel), rounds))


def _encoded(kernel: str | None) -> bytes | None:
    return None if kernel is None else kernel.encode()


def _check_array(name: str, array: NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ConfigError(f"{name} must be contiguous {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}")


def _buffer(out: NDArray[Any] | None, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """``out`` if it is fit to be written, a new array without one."""
    if out is None:
        return np.empty(shape, dtype)
    _check_array("out", out, dtype, shape)
    return out


def _typed(name: str, array: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    if array.dtype != dtype:
        raise ConfigError(f"{name} must be {np.dtype(dtype)}, got {array.dtype}")
    return np.ascontiguousarray(array)


def _per_channel(name: str, array: NDArray[Any] | None, dtype: type[np.generic], channels: int) -> NDArray[Any] | None:
    if array is None:
        return None
    array = _typed(name, array, dtype)
    if array.shape != (channels,):
        raise ConfigError(f"{name} must have one value per output channel, shape ({channels},), got {array.shape}")
    return array


def _checked(function: Callable[..., int], *arguments: object) -> None:
    """Call a C function that ends in ``error, error_size``; its status and sentence become an exception."""
    message = ctypes.create_string_buffer(_ERROR_BYTES)
    status = function(*arguments, message, _ERROR_BYTES)
    if status == _OK:
        return
    text = message.value.decode(errors="replace")
    if status in (_INVALID_ARGUMENT, _UNKNOWN_KERNEL):
        raise ConfigError(text)
    raise BnnedgeError(f"native kernel failed: {text}")
