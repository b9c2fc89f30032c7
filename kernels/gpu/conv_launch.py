"""What the implementations of the binary convolution share: checks, buffers, and all but the popcount of the products.

With P the popcount of the AND of a window's words and a filter's, for each output pixel p and channel o

    v = 4 P - 2 Ra[p] + table[border_class[p], o]

where ``Ra`` is the sum of the counts of the pixels in the window (``window_counts``), and the table holds ``K - 2 Rb``
over the taps that count: all of them for one-padding, the taps inside the image for zero-padding. Pixels with the same
taps inside share a row of the table, at most 9 rows for a 3x3 filter with padding 1 (``border_table``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnnedge.errors import ConfigError
from bnnedge.kernels.geometry import BConv2dGeometry
from bnnedge.kernels.gpu.compile_gate import CompileCase
from bnnedge.kernels.gpu.reference import Convolved
from bnnedge.kernels.gpu.xnor_gemm import check_output
from bnnedge.kernels.layout import words_for

BLOCK_WINDOW = 256


@dataclass(frozen=True)
class ConvCall:
    """One call of a convolution kernel, its arguments checked and its buffers allocated.

    ``words`` [N, H, W, Cw] and ``filters`` [O, kh, kw, Cw] are int32. The kernel fills ``out`` [N, OH, OW, O] and, if
    there are ``sums``, adds to them, int64 [2, O].
    """

    words: Tensor
    filters: Tensor
    geometry: BConv2dGeometry
    window_counts: Tensor
    border_class: Tensor
    table: Tensor
    alpha: Tensor | None
    out: Tensor
    sums: Tensor | None

    @property
    def pixels(self) -> int:
        """Output pixels of all images: rows of the implicit matrix product."""
        return self.geometry.batch * self.geometry.out_height * self.geometry.out_width

    def epilogue_tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors that every kernel takes after the words and the filters, in this order."""
        sums, squares = (None, None) if self.sums is None else self.sums
        return (self.window_counts, self.border_class, self.table, self.alpha, self.out, sums, squares)

    def constants(self) -> dict[str, int | bool]:
        """The compile-time arguments that every kernel has."""
        kernel_y, kernel_x = self.geometry.kernel
        return {
            "KERNEL_Y": kernel_y,
            "KERNEL_X": kernel_x,
            "HAS_ALPHA": self.alpha is not None,
            "BN_SUMS": self.sums is not None,
        }


def conv_launcher(launch: Callable[[ConvCall], None]) -> Callable[..., Convolved]:
    """Decorator: a function that launches a kernel for a ``ConvCall`` becomes ``reference.bconv2d``."""

    def bconv2d(
        words: Tensor,
        filters: Tensor,
        geometry: BConv2dGeometry,
        counts: Tensor,
        filter_counts: Tensor,
        alpha: Tensor | None = None,
        out_dtype: torch.dtype = torch.int32,
        bn_sums: bool = False,
    ) -> Convolved:
        _check(words, filters, geometry, counts, filter_counts, alpha, out_dtype)
        border_class, table = border_table(geometry, filter_counts)
        call = ConvCall(
            words=words,
            filters=filters,
            geometry=geometry,
            window_counts=window_counts(counts, geometry),
            border_class=border_class,
            table=table,
            alpha=alpha,
            out=words.new_empty(geometry.output_shape, dtype=out_dtype),
            sums=words.new_zeros((2, geometry.out_channels), dtype=torch.int64) if bn_sums else None,
        )
        launch(call)
        return Convolved(call.out, call.sums)

    bconv2d.__doc__ = launch.__doc__ or "``reference.bconv2d``."
    return bconv2d


@triton.jit
def window_counts_kernel(
    counts_ptr,
    out_ptr,
    pixels,
    height,
    width,
    out_height,
    out_width,
    stride_y,
    stride_x,
    pad_y,
    pad_x,
    dilation_y,
    dilation_x,
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    valid = tl.arange(0, BLOCK) < pixels - first
    image0, image, top, left, _ = window_corner(first, BLOCK, out_height, out_width, stride_y, stride_x, pad_y, pad_x)
    counts_ptr += image0 * height * width
    total = tl.zeros((BLOCK,), tl.int32)
    for ky in range(KERNEL_Y):
        for kx in range(KERNEL_X):
            y, x = top + ky * dilation_y, left + kx * dilation_x
            inside = valid & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            total += tl.load(counts_ptr + (image * height + y) * width + x, mask=inside, other=0)
    tl.store(out_ptr + first + tl.arange(0, BLOCK), total, mask=valid)


@triton.jit
def window_corner(first, BLOCK: tl.constexpr, out_height, out_width, stride_y, stride_x, pad_y, pad_x):
    """Where the windows of output pixels ``first`` (int64) to ``first + BLOCK - 1`` begin.

    Returns the image of the first pixel (int64), and in int32 each pixel's image counted from that one, its window's
    top row and left column, which may lie outside the image, and its place [OH * OW] in the image.
    """
    in_image = (first % (out_height * out_width)).to(tl.int32) + tl.arange(0, BLOCK)
    image = in_image // (out_height * out_width)
    place = in_image % (out_height * out_width)
    top = (place // out_width) * stride_y - pad_y
    left = place % out_width * stride_x - pad_x
    return first // (out_height * out_width), image, top, left, place


def _check(
    words: Tensor,
    filters: Tensor,
    geometry: BConv2dGeometry,
    counts: Tensor,
    filter_counts: Tensor,
    alpha: Tensor | None,
    out_dtype: torch.dtype,
) -> None:
    """Raises ``ConfigError`` for arguments that are not those of ``reference.bconv2d``."""
    g = geometry
    if g.groups != 1:
        raise ConfigError(f"packed convolutions on a GPU have one group, got {g.groups}; take the dense path")
    expected = {
        "words": (words, (g.batch, g.height, g.width, words_for(g.channels))),
        "filters": (filters, (g.out_channels, *g.kernel, words_for(g.channels))),
        "counts": (counts, (g.batch, g.height, g.width)),
        "filter_counts": (filter_counts, (g.out_channels, *g.kernel)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.dtype != torch.int32 or tensor.shape != shape or not tensor.is_contiguous():
            raise ConfigError(f"{name} must be contiguous int32 {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
    check_output(alpha, out_dtype, g.out_channels)


def window_counts(counts: Tensor, geometry: BConv2dGeometry) -> Tensor:
    """Ra: sums of ``counts`` int32 [N, H, W] over each window, int32 [N, OH, OW]; pixels outside count 0."""
    g = geometry
    pixels = g.batch * g.out_height * g.out_width
    out = counts.new_empty((g.batch, g.out_height, g.out_width))
    window_counts_kernel[(triton.cdiv(pixels, BLOCK_WINDOW),)](
        counts, out, pixels, *positions(g), KERNEL_Y=g.kernel[0], KERNEL_X=g.kernel[1], BLOCK=BLOCK_WINDOW, num_warps=4
    )
    return out


def border_table(geometry: BConv2dGeometry, filter_counts: Tensor) -> tuple[Tensor, Tensor]:
    """(border class int32 [OH * OW] of each output pixel, ``K - 2 Rb`` int32 [classes, O])."""
    g = geometry
    border_class, taps = _border_classes(
        (g.height, g.width),
        (g.out_height, g.out_width),
        g.kernel,
        g.stride,
        g.padding,
        g.dilation,
        g.pad_value,
        filter_counts.device,
    )
    per_tap = g.channels - 2 * filter_counts.flatten(1)  # [O, taps]
    return border_class, (taps.unsqueeze(1) * per_tap).sum(-1, dtype=torch.int32)


@lru_cache(maxsize=256)
def _border_classes(
    size: tuple[int, int],
    out_size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    pad_value: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """(class of each output pixel [OH * OW], which taps count in each class [classes, taps]), int32.

    Kept for each geometry, so that a captured CUDA graph copies nothing from the host.
    """
    axes = []
    for length, out, k, s, p, d in zip(size, out_size, kernel, stride, padding, dilation, strict=True):
        at = torch.arange(out).unsqueeze(1) * s - p + torch.arange(k) * d
        counted = (at >= 0) & (at < length) if pad_value == 0 else torch.ones_like(at, dtype=torch.bool)
        axes.append(torch.unique(counted, dim=0, return_inverse=True))
    (rows, row_class), (columns, column_class) = axes
    border_class = row_class.unsqueeze(1) * len(columns) + column_class
    taps = rows[:, None, :, None] & columns[None, :, None, :]
    return (
        border_class.flatten().to(device, torch.int32),
        taps.reshape(len(rows) * len(columns), -1).to(device, torch.int32),
    )


def positions(geometry: BConv2dGeometry) -> tuple[int, ...]:
    """Sizes, stride, padding and dilation in the order in which every kernel takes them."""
    g = geometry
    return (g.height, g.width, g.out_height, g.out_width, *g.stride, *g.padding, *g.dilation)


POSITIONS = (
    *("height", "width", "out_height", "out_width", "stride_y", "stride_x"),
    *("pad_y", "pad_x", "dilation_y", "dilation_x"),
)
"""The names of ``positions`` in the kernels."""

COMPILE_CASES = [
    CompileCase(
        name="window_counts/3x3",
        kernel=window_counts_kernel,
        arguments={"counts_ptr": "*i32", "out_ptr": "*i32"} | {name: "i32" for name in ("pixels", *POSITIONS)},
        constants={"KERNEL_Y": 3, "KERNEL_X": 3, "BLOCK": BLOCK_WINDOW},
        aligned=("pixels",),
    ),
]
