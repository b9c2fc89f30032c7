"""Binary convolution of packed words as an implicit matrix product, in plain ``tl``: any GPU, and the interpreter.

Rows are output pixels, columns output channels, the reduction runs over the filter's taps and the words of a pixel. A
tap outside the image loads words 0. With P the popcount of the AND, for each output pixel p and channel o

    v = 4 P - 2 Ra[p] + table[border_class[p], o]

where ``Ra`` is the box sum of the pixels' counts (``window_counts``), and the table holds ``K - 2 Rb`` over the taps
that count: all of them for one-padding, the taps inside the image for zero-padding. Pixels with the same taps inside
share a row of the table, at most 9 rows for a 3x3 filter with padding 1 (``border_table``). Every implementation of
the convolution ends in these two.

Inside a tile places are 32-bit, counted from the tile's first image or pixel, whose address is 64-bit: 64-bit places
took the registers of a whole thread block.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnnedge.errors import ConfigError
from bnnedge.kernels.geometry import BConv2dGeometry
from bnnedge.kernels.gpu.bits import popcount
from bnnedge.kernels.gpu.compile_gate import CompileCase
from bnnedge.kernels.gpu.reference import Convolved
from bnnedge.kernels.gpu.xnor_gemm import check_output
from bnnedge.kernels.layout import words_for

BLOCK_PIXELS, BLOCK_OUT = 64, 64
NUM_WARPS = 8
BLOCK_WINDOW = 256


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


@triton.jit
def bconv2d_kernel(
    words_ptr,
    filters_ptr,
    window_counts_ptr,
    border_class_ptr,
    table_ptr,
    alpha_ptr,
    out_ptr,
    sums_ptr,
    squares_ptr,
    pixels,
    out_channels,
    words,
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
    HAS_ALPHA: tl.constexpr,
    BN_SUMS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_PIXELS
    pixel = tl.arange(0, BLOCK_PIXELS)
    channel = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    image0, image, top, left, place = window_corner(
        first, BLOCK_PIXELS, out_height, out_width, stride_y, stride_x, pad_y, pad_x
    )
    words_ptr += image0 * height * width * words
    corner = ((image * height + top) * width + left) * words
    filter_at = channel * (KERNEL_Y * KERNEL_X) * words
    both = tl.zeros((BLOCK_PIXELS, BLOCK_OUT), tl.int32)
    for k in range(0, KERNEL_Y * KERNEL_X * words):
        tap = k // words
        y, x = tap // KERNEL_X * dilation_y, tap % KERNEL_X * dilation_x
        inside = (top + y >= 0) & (top + y < height) & (left + x >= 0) & (left + x < width) & (pixel < pixels - first)
        a = tl.load(words_ptr + (corner + (y * width + x) * words + k % words), mask=inside, other=0)
        b = tl.load(filters_ptr + (filter_at + k), mask=channel < out_channels, other=0)
        both += popcount(a[:, None] & b[None, :])

    valid, wanted = pixel < pixels - first, channel < out_channels
    stored = valid[:, None] & wanted[None, :]
    window = tl.load(window_counts_ptr + first + pixel, mask=valid, other=0)
    border = tl.load(border_class_ptr + place, mask=valid, other=0)
    table = tl.load(table_ptr + (border * out_channels)[:, None] + channel[None, :], mask=stored, other=0)
    v = 4 * both - 2 * window[:, None] + table
    if BN_SUMS:
        counted = tl.where(stored, v, 0).to(tl.int64)
        tl.atomic_add(sums_ptr + channel, tl.sum(counted, axis=0), mask=wanted, sem="relaxed")
        squares = tl.sum(counted * counted, axis=0)
        tl.atomic_add(squares_ptr + channel, squares, mask=wanted, sem="relaxed")
    out_ptr += first * out_channels
    at = (pixel * out_channels)[:, None] + channel[None, :]
    if HAS_ALPHA:
        alpha = tl.load(alpha_ptr + channel, mask=wanted, other=0.0)
        tl.store(out_ptr + at, (v.to(tl.float32) * alpha[None, :]).to(out_ptr.dtype.element_ty), mask=stored)
    elif out_ptr.dtype.element_ty == tl.int32:
        tl.store(out_ptr + at, v, mask=stored)
    else:
        tl.store(out_ptr + at, v.to(tl.float32).to(out_ptr.dtype.element_ty), mask=stored)


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
    """``reference.bconv2d``."""
    check_bconv2d(words, filters, geometry, counts, filter_counts, alpha, out_dtype)
    g = geometry
    images = BLOCK_PIXELS // (g.out_height * g.out_width) + 2
    if images * g.height * g.width * words.shape[3] >= 2**31:
        raise ConfigError(f"{images} images of {g.height}x{g.width}x{g.channels} exceed the 2^31 words of a tile")
    border_class, table = border_table(g, filter_counts)
    out = words.new_empty(g.output_shape, dtype=out_dtype)
    sums = words.new_zeros((2, g.out_channels), dtype=torch.int64) if bn_sums else None
    pixels = g.batch * g.out_height * g.out_width
    bconv2d_kernel[(triton.cdiv(pixels, BLOCK_PIXELS), triton.cdiv(g.out_channels, BLOCK_OUT))](
        words,
        filters,
        window_counts(counts, g),
        border_class,
        table,
        alpha,
        out,
        *((None, None) if sums is None else sums),
        pixels,
        g.out_channels,
        words.shape[3],
        *_positions(g),
        KERNEL_Y=g.kernel[0],
        KERNEL_X=g.kernel[1],
        HAS_ALPHA=alpha is not None,
        BN_SUMS=bn_sums,
        BLOCK_PIXELS=BLOCK_PIXELS,
        BLOCK_OUT=BLOCK_OUT,
        num_warps=NUM_WARPS,
    )
    return Convolved(out, sums)


def check_bconv2d(
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
    """Ra: box sums of ``counts`` int32 [N, H, W] over each window, int32 [N, OH, OW]; outside pixels count 0."""
    g = geometry
    pixels = g.batch * g.out_height * g.out_width
    out = counts.new_empty((g.batch, g.out_height, g.out_width))
    window_counts_kernel[(triton.cdiv(pixels, BLOCK_WINDOW),)](
        counts, out, pixels, *_positions(g), KERNEL_Y=g.kernel[0], KERNEL_X=g.kernel[1], BLOCK=BLOCK_WINDOW, num_warps=4
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


def _positions(geometry: BConv2dGeometry) -> tuple[int, ...]:
    """Sizes, stride, padding and dilation in the order in which both kernels take them."""
    g = geometry
    return (g.height, g.width, g.out_height, g.out_width, *g.stride, *g.padding, *g.dilation)


_POSITIONS = (
    *("height", "width", "out_height", "out_width", "stride_y", "stride_x"),
    *("pad_y", "pad_x", "dilation_y", "dilation_x"),
)


def _case(out: str, has_alpha: bool, bn_sums: bool, kernel: int = 3) -> CompileCase:
    optional = {"alpha_ptr": ("*fp32", has_alpha), "sums_ptr": ("*i64", bn_sums), "squares_ptr": ("*i64", bn_sums)}
    parts = (out, *(["scaled"] if has_alpha else []), *(["bn_sums"] if bn_sums else []))
    return CompileCase(
        name=f"bconv2d/{kernel}x{kernel}_{'_'.join(parts)}",
        kernel=bconv2d_kernel,
        arguments={"words_ptr": "*i32", "filters_ptr": "*i32", "window_counts_ptr": "*i32", "table_ptr": "*i32"}
        | {"border_class_ptr": "*i32", "out_ptr": f"*{out}", "pixels": "i32"}
        | {name: kind for name, (kind, used) in optional.items() if used}
        | {name: "i32" for name in ("out_channels", "words", *_POSITIONS)},
        constants={"KERNEL_Y": kernel, "KERNEL_X": kernel, "HAS_ALPHA": has_alpha, "BN_SUMS": bn_sums}
        | {"BLOCK_PIXELS": BLOCK_PIXELS, "BLOCK_OUT": BLOCK_OUT}
        | {name: None for name, (_, used) in optional.items() if not used},
        aligned=("pixels", "out_channels"),
        num_warps=NUM_WARPS,
        at_least={"POPC": 1, "MEMBAR": 0} | ({"REDG": 1} if bn_sums else {}),
        quick=bn_sums,
    )


COMPILE_CASES = [
    _case("i32", False, False),
    _case("bf16", True, True),
    _case("fp32", True, False, kernel=1),
    CompileCase(
        name="window_counts/3x3",
        kernel=window_counts_kernel,
        arguments={"counts_ptr": "*i32", "out_ptr": "*i32"} | {name: "i32" for name in ("pixels", *_POSITIONS)},
        constants={"KERNEL_Y": 3, "KERNEL_X": 3, "BLOCK": BLOCK_WINDOW},
        aligned=("pixels",),
    ),
]
