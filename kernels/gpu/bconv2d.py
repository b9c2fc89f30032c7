"""Binary convolution of packed words as an implicit matrix product, in plain ``tl``: any GPU, and the interpreter.

Rows are output pixels, columns output channels, the reduction runs over the filter's taps and the words of a pixel. A
tap outside the image loads words 0. What becomes of the popcounts stands in ``conv_launch.py``.

Inside a tile places are 32-bit, counted from the tile's first image or pixel, whose address is 64-bit: 64-bit places
took the registers of a whole thread block.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bnnedge.errors import ConfigError
from bnnedge.kernels.gpu.bits import popcount
from bnnedge.kernels.gpu.compile_gate import CompileCase
from bnnedge.kernels.gpu.conv_launch import POSITIONS, ConvCall, conv_launcher, positions, window_corner

BLOCK_PIXELS, BLOCK_OUT = 64, 64
NUM_WARPS = 8


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


@conv_launcher
def bconv2d(c: ConvCall) -> None:
    g, words = c.geometry, c.words.shape[3]
    images = BLOCK_PIXELS // (g.out_height * g.out_width) + 2
    if images * g.height * g.width * words >= 2**31:
        raise ConfigError(f"{images} images of {g.height}x{g.width}x{g.channels} exceed the 2^31 words of a tile")
    bconv2d_kernel[(triton.cdiv(c.pixels, BLOCK_PIXELS), triton.cdiv(g.out_channels, BLOCK_OUT))](
        c.words,
        c.filters,
        *c.epilogue_tensors(),
        c.pixels,
        g.out_channels,
        words,
        *positions(g),
        **c.constants(),
        BLOCK_PIXELS=BLOCK_PIXELS,
        BLOCK_OUT=BLOCK_OUT,
        num_warps=NUM_WARPS,
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
        | {name: "i32" for name in ("out_channels", "words", *POSITIONS)},
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
]
