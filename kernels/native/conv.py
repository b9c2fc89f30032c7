"""The binary convolution in C++: ``bconv2d`` in one call, ``Conv`` prepared once and run many times."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ConfigError
from bnnedge.kernels.geometry import BConv2dGeometry, Pair, output_size
from bnnedge.kernels.layout import Words, words_for
from bnnedge.kernels.native.arrays import check_array, contiguous, output_buffer, per_channel
from bnnedge.kernels.native.library import BConv2dParams, CTransform, checked, encoded, load_library

_KINDS: dict[str, tuple[int, type[np.generic]]] = {
    "sums": (0, np.int32),
    "float": (1, np.float32),
    "int8": (2, np.int8),
    "bits": (3, np.uint32),
}
"""Kind of output -> ``bnnedge_output``'s number for it, and the type of its elements."""


@dataclass(frozen=True)
class Tail:
    """The rest of a residual block, computed on a float NHWC output y before it is stored.

    In this order, each step rounded by itself: add the residual; ``y = y < 0 ? slope * y : y``; add ``offset``;
    ``min(max(y, low), high)``. With ``writes_bits`` there is a second output, packed, bit 1 where ``y < limit``.
    ``slope``, ``offset`` and ``limit`` are float32 [O]; None stands for no PReLU, no offset, and a limit of 0.
    """

    adds_residual: bool = False
    slope: NDArray[np.float32] | None = None
    offset: NDArray[np.float32] | None = None
    low: float = -np.inf
    high: float = np.inf
    writes_bits: bool = False
    limit: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class OutputTransform:
    """What a convolution stores for its integer sums.

    With s the sum of +-1 products and K their number, v = s, or v = K - s in the ``doubled_popcount`` domain, which is
    Larq Compute Engine's accumulator.

    ``kind``        "sums": int32 v; "float": clamp(v) * multiplier + bias, product and sum rounded apart; "int8": the
                    same rounded half away from zero and saturated; "bits": packed, bit 1 where v < threshold (in the
                    doubled domain v > threshold)
    ``nchw``        stores a float output as NCHW; every other output is NHWC
    ``multiplier``, ``bias``  float32 [O], for "float" and "int8"
    ``threshold``   int32 [O], for "bits"
    """

    kind: str = "sums"
    doubled_popcount: bool = False
    nchw: bool = False
    clamp: tuple[int, int] = (-(2**31), 2**31 - 1)
    multiplier: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None
    threshold: NDArray[np.int32] | None = None
    tail: Tail = Tail()


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
    """The C structure of a checked geometry."""
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
    checked(
        library.bnnedge_bconv2d,
        ctypes.byref(params),
        encoded(kernel),
        words.ctypes.data_as(as_words),
        words.size,
        filters.ctypes.data_as(as_words),
        filters.size,
        sums.ctypes.data_as(as_sums),
        sums.size,
    )


def peak(rounds: int, kernel: str | None = None) -> int:
    """Run the kernel's inner loop on registers; returns its binary multiply-adds, 0 if it has no such loop."""
    return int(load_library().bnnedge_peak(encoded(kernel), rounds))


class Conv:
    """A convolution prepared once and run many times; ``Conv`` of ``include/bnnedge/conv.h``.

    ``params``   as ``to_params`` makes them; a run may have another batch, height and width
    ``filters``  uint32 [O, kh, kw, ceil(C/groups/32)]; copied
    ``kernel``   one of ``kernel_names()``; None takes ``BNNEDGE_KERNEL``, else the fastest

    It must not be called from several threads at once. Raises ``ConfigError``, ``MissingDependencyError``.
    """

    def __init__(
        self,
        params: BConv2dParams,
        filters: Words,
        transform: OutputTransform | None = None,
        *,
        kernel: str | None = None,
        threads: int = 1,
    ) -> None:
        self._params, self._transform = params, transform or OutputTransform()
        if self._transform.kind not in _KINDS:
            raise ConfigError(f"transform kind is one of {', '.join(_KINDS)}, got {self._transform.kind}")
        self._library = load_library()
        self._shape = (params.batch, params.in_height, params.in_width)
        filters = contiguous("filters", filters, np.uint32)
        c_transform, _arrays = _to_c(self._transform, params.out_channels)  # the library copies the arrays
        handle = ctypes.c_void_p()
        checked(
            self._library.bnnedge_conv_create,
            ctypes.byref(params),
            filters.ctypes.data,
            filters.size,
            ctypes.byref(c_transform),
            encoded(kernel),
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
        """[N, OH, OW, O], [N, O, OH, OW] or, for bits, [N, OH, OW, ceil(O/32)], for the last input's size."""
        p, (batch, height, width) = self._params, self._shape
        height = output_size(height + p.pad_top + p.pad_bottom, p.kernel_height, p.stride_height, 0, p.dilation_height)
        width = output_size(width + p.pad_left + p.pad_right, p.kernel_width, p.stride_width, 0, p.dilation_width)
        if self._transform.nchw:
            return (batch, p.out_channels, height, width)
        last = words_for(p.out_channels) if self._transform.kind == "bits" else p.out_channels
        return (batch, height, width, last)

    def __call__(
        self,
        x: NDArray[Any],
        out: NDArray[Any] | None = None,
        *,
        residual: NDArray[np.float32] | None = None,
        bits: Words | None = None,
    ) -> NDArray[Any]:
        """The transform's output for ``x``, written into ``out`` if that is given.

        ``x`` is packed words, uint32 [N, H, W, ceil(C/32)], or float32 [N, H, W, C], whose signs are packed first.
        ``residual`` (float32, shape of the output, may be ``out``) is what the tail adds; ``bits`` (uint32
        [N, OH, OW, ceil(O/32)]) takes what it packs.
        """
        if x.dtype not in (np.uint32, np.float32) or x.ndim != 4:
            raise ConfigError(
                f"the input must be uint32 [N, H, W, ceil(C/32)] or float32 [N, H, W, C], got {x.dtype} {x.shape}"
            )
        x = np.ascontiguousarray(x)
        if x.shape[:3] != self._shape:
            checked(self._library.bnnedge_conv_resize, self._handle, *x.shape[:3])
            self._shape = (x.shape[0], x.shape[1], x.shape[2])
        shape, tail = self.output_shape, self._transform.tail
        out = output_buffer(out, shape, _KINDS[self._transform.kind][1])
        if (residual is not None) != tail.adds_residual or (bits is not None) != tail.writes_bits:
            raise ConfigError("residual and bits must be given if the tail has them, and only then")
        if residual is not None:
            check_array("residual", residual, np.float32, shape)
        if bits is not None:
            check_array("bits", bits, np.uint32, (*shape[:3], words_for(self._params.out_channels)))
        checked(self._library.bnnedge_conv_run, self._handle, *_run_arguments(x, out, residual, bits))
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
        run_again = partial(
            function, *(t(v) if type(v) is int else v for t, v in zip(function.argtypes, values, strict=True))
        )

        def run(_alive: tuple[object, ...] = (self, x, out, residual, bits)) -> None:
            run_again()

        return run


def _to_c(transform: OutputTransform, out_channels: int) -> tuple[CTransform, list[NDArray[Any]]]:
    """The C structure of ``transform``, and the arrays whose addresses it holds."""
    tail = transform.tail
    given = {name: getattr(transform, name) for name in ("multiplier", "bias", "threshold")}
    given |= {name: getattr(tail, name) for name in ("slope", "offset", "limit")}
    arrays = {
        name: per_channel(name, array, np.int32 if name == "threshold" else np.float32, out_channels)
        for name, array in given.items()
    }
    structure = CTransform(
        kind=_KINDS[transform.kind][0],
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
    return structure, [array for array in arrays.values() if array is not None]


def _run_arguments(
    x: NDArray[Any], out: NDArray[Any], residual: NDArray[np.float32] | None, bits: Words | None
) -> tuple[int | None, ...]:
    """The arguments of ``bnnedge_conv_run`` between the handle and the message."""
    tail = [(None, 0) if array is None else (array.ctypes.data, array.size) for array in (residual, bits)]
    return (int(x.dtype == np.float32), x.ctypes.data, x.size, out.ctypes.data, out.nbytes, *tail[0], *tail[1])
