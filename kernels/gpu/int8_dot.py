"""Binary matrix product and convolution on 8-bit tensor cores, in plain ``tl``: for GPUs without 1-bit ones (10.0 on).

Words stay packed in memory and are spread in registers. Bit j of every byte of a tile is a matrix of {0, 1}, one eighth
of K each; eight products of such planes add up to ``P = popcount(a AND b)``, in whatever order K comes. A byte of 0
beyond K or outside the image adds nothing. The operands are int8, or e4m3 floats of 0.0 and 1.0, whose float32 sums are
exact for K < 2^24. The rest is that of ``xnor_gemm.py`` and ``conv_launch.py``.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnnedge.errors import ConfigError
from bnnedge.kernels.gpu.bits import offsets64
from bnnedge.kernels.gpu.compile_gate import CompileCase
from bnnedge.kernels.gpu.conv_launch import ConvCall, conv_launcher, positions, window_corner
from bnnedge.kernels.gpu.xnor_gemm import check_gemm

TILE = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_BYTES": 64}
NUM_WARPS, NUM_STAGES = 8, 3

FP8_CAPABILITIES = ((10, 3),)
"""Compute capabilities with a fast instruction for e4m3 and none for int8, whose sums are exact on all hardware."""

# Shift and AND on four bytes at once, where shifts of int8 would be widened one by one. What a shift brings from the
# neighbouring byte is masked away. 56 is the code of 1.0 in e4m3.
_INT8_PLANES = tl.constexpr(
    tuple(f"{{ .reg .b32 t; shr.u32 t, $1, {j}; and.b32 $0, t, 0x01010101; }}" for j in range(8))
)
_FP8_PLANES = tl.constexpr(
    tuple(f"{{ .reg .b32 t; shr.u32 t, $1, {j}; and.b32 t, t, 0x01010101; mul.lo.u32 $0, t, 56; }}" for j in range(8))
)


@triton.jit
def bit_plane(octets, BIT: tl.constexpr, FP8: tl.constexpr, ASM: tl.constexpr):
    """Bit ``BIT`` of each byte as int8 or e4m3 0 and 1. ``ASM`` is for GPUs, the interpreter has no assembly."""
    if ASM:
        if FP8:
            plane = tl.inline_asm_elementwise(_FP8_PLANES[BIT], "=r,r", [octets], dtype=tl.int8, is_pure=True, pack=4)
        else:
            plane = tl.inline_asm_elementwise(_INT8_PLANES[BIT], "=r,r", [octets], dtype=tl.int8, is_pure=True, pack=4)
    else:
        plane = (octets >> BIT) & 1
        if FP8:
            plane = plane * 56
    if FP8:
        plane = plane.to(tl.float8e4nv, bitcast=True)
    return plane


@triton.jit
def add_products(a, b, both, FP8: tl.constexpr, ASM: tl.constexpr):
    """Adds ``popcount(a AND b)`` of bytes [M, bytes] and [N, bytes] to ``both`` [M, N]."""
    for bit in tl.static_range(8):
        left, right = bit_plane(a, bit, FP8, ASM), bit_plane(b, bit, FP8, ASM)
        both = tl.dot(left, tl.trans(right), both, out_dtype=both.dtype)
    return both


@triton.jit
def scaled(v, alpha_ptr, n, columns, HAS_ALPHA: tl.constexpr, KIND: tl.constexpr):
    """Int32 ``v`` [M, N] as it is stored: int32, or float, times ``alpha`` of its column, rounded once."""
    if HAS_ALPHA:
        alpha = tl.load(alpha_ptr + n, mask=n < columns, other=0.0)
        y = (v.to(tl.float32) * alpha[None, :]).to(KIND)
    else:
        y = v if KIND.is_int() else v.to(tl.float32).to(KIND)
    return y


@triton.jit
def int8_gemm_kernel(
    a_ptr,
    b_ptr,
    a_counts_ptr,
    b_counts_ptr,
    alpha_ptr,
    out_ptr,
    rows,
    columns,
    k,
    row_bytes,
    HAS_ALPHA: tl.constexpr,
    FP8: tl.constexpr,
    ASM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
):
    m = offsets64(BLOCK_M, 0)
    n = offsets64(BLOCK_N, 1)
    octet = tl.arange(0, BLOCK_BYTES)
    a_at = a_ptr + m[:, None] * row_bytes + octet[None, :]
    b_at = b_ptr + n[:, None] * row_bytes + octet[None, :]
    both = tl.zeros((BLOCK_M, BLOCK_N), tl.float32 if FP8 else tl.int32)
    for first in range(0, row_bytes, BLOCK_BYTES):
        inside = (first + octet < row_bytes)[None, :]
        a = tl.load(a_at + first, mask=inside & (m < rows)[:, None], other=0)
        b = tl.load(b_at + first, mask=inside & (n < columns)[:, None], other=0)
        both = add_products(a, b, both, FP8, ASM)
    a_counts = tl.load(a_counts_ptr + m, mask=m < rows, other=0)
    b_counts = tl.load(b_counts_ptr + n, mask=n < columns, other=0)
    v = 4 * both.to(tl.int32) - 2 * a_counts[:, None] + (k - 2 * b_counts)[None, :]
    at = out_ptr + m[:, None] * columns + n[None, :]
    y = scaled(v, alpha_ptr, n, columns, HAS_ALPHA, out_ptr.dtype.element_ty)
    tl.store(at, y, mask=(m < rows)[:, None] & (n < columns)[None, :])


@triton.jit
def int8_conv2d_kernel(
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
    PIXEL_BYTES: tl.constexpr,
    HAS_ALPHA: tl.constexpr,
    BN_SUMS: tl.constexpr,
    FP8: tl.constexpr,
    ASM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
):
    K_BYTES: tl.constexpr = KERNEL_Y * KERNEL_X * PIXEL_BYTES
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid, wanted = m < pixels - first, n < out_channels
    image0, image, top, left, place = window_corner(
        first, BLOCK_M, out_height, out_width, stride_y, stride_x, pad_y, pad_x
    )
    words_ptr += image0 * height * width * PIXEL_BYTES
    corner = ((image * height + top) * width + left) * PIXEL_BYTES
    filter_at = n * K_BYTES
    both = tl.zeros((BLOCK_M, BLOCK_N), tl.float32 if FP8 else tl.int32)
    for start in range(0, K_BYTES, BLOCK_BYTES):
        octet = start + tl.arange(0, BLOCK_BYTES)
        tap = octet // PIXEL_BYTES
        y, x = tap // KERNEL_X * dilation_y, tap % KERNEL_X * dilation_x
        row, column = top[:, None] + y[None, :], left[:, None] + x[None, :]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) & valid[:, None]
        inside = inside & (octet < K_BYTES)[None, :]
        step = (y * width + x) * PIXEL_BYTES + octet % PIXEL_BYTES
        a = tl.load(words_ptr + (corner[:, None] + step[None, :]), mask=inside, other=0)
        b_inside = wanted[:, None] & (octet < K_BYTES)[None, :]
        b = tl.load(filters_ptr + (filter_at[:, None] + octet[None, :]), mask=b_inside, other=0)
        both = add_products(a, b, both, FP8, ASM)

    stored = valid[:, None] & wanted[None, :]
    window = tl.load(window_counts_ptr + first + m, mask=valid, other=0)
    border = tl.load(border_class_ptr + place, mask=valid, other=0)
    table = tl.load(table_ptr + (border * out_channels)[:, None] + n[None, :], mask=stored, other=0)
    v = 4 * both.to(tl.int32) - 2 * window[:, None] + table
    if BN_SUMS:
        counted = tl.where(stored, v, 0).to(tl.int64)
        tl.atomic_add(sums_ptr + n, tl.sum(counted, axis=0), mask=wanted, sem="relaxed")
        tl.atomic_add(squares_ptr + n, tl.sum(counted * counted, axis=0), mask=wanted, sem="relaxed")
    y = scaled(v, alpha_ptr, n, out_channels, HAS_ALPHA, out_ptr.dtype.element_ty)
    tl.store(out_ptr + first * out_channels + ((m * out_channels)[:, None] + n[None, :]), y, mask=stored)


def xnor_gemm(
    a: Tensor,
    b: Tensor,
    k: int,
    a_counts: Tensor,
    b_counts: Tensor,
    alpha: Tensor | None = None,
    out_dtype: torch.dtype = torch.int32,
) -> Tensor:
    """``reference.xnor_gemm`` on 8-bit tensor cores."""
    check_gemm(a, b, k, a_counts, b_counts, alpha, out_dtype)
    rows, columns = a.shape[0], b.shape[0]
    out = a.new_empty((rows, columns), dtype=out_dtype)
    int8_gemm_kernel[(triton.cdiv(rows, TILE["BLOCK_M"]), triton.cdiv(columns, TILE["BLOCK_N"]))](
        a.view(torch.int8),
        b.view(torch.int8),
        a_counts,
        b_counts,
        alpha,
        out,
        rows,
        columns,
        k,
        4 * a.shape[1],
        HAS_ALPHA=alpha is not None,
        **operand_kind(a.device),
        **TILE,
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
    )
    return out


@conv_launcher
def bconv2d(c: ConvCall) -> None:
    g, pixel_bytes = c.geometry, 4 * c.words.shape[3]
    images = TILE["BLOCK_M"] // (g.out_height * g.out_width) + 2
    if images * g.height * g.width * pixel_bytes >= 2**31:
        raise ConfigError(
            f"{images} images of {g.height}x{g.width} pixels with {g.channels} channels exceed 2^31 bytes"
        )
    int8_conv2d_kernel[(triton.cdiv(c.pixels, TILE["BLOCK_M"]), triton.cdiv(g.out_channels, TILE["BLOCK_N"]))](
        c.words.view(torch.int8),
        c.filters.view(torch.int8),
        *c.epilogue_tensors(),
        c.pixels,
        g.out_channels,
        *positions(g),
        **c.constants(),
        PIXEL_BYTES=pixel_bytes,
        **operand_kind(c.words.device),
        **TILE,
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
    )


def operand_kind(device: torch.device) -> dict[str, bool]:
    """The 8-bit operands that a device multiplies fast, as constants of both kernels; the interpreter takes int8."""
    if device.type != "cuda":
        return {"FP8": False, "ASM": False}
    return {"FP8": torch.cuda.get_device_capability(device) in FP8_CAPABILITIES, "ASM": True}


_PRODUCTS = {  # The instruction and its number in the loop, which computes 8 planes of 128 x 128 x 64 products.
    (80, False): ("IMMA.16832.S8.S8", 256),
    (89, False): ("IMMA.16832.S8.S8", 256),
    (89, True): ("QMMA.16832", 256),
    (90, False): ("IGMMA.64x128x32", 16),
    (90, True): ("QGMMA.64x128x32", 16),
    (100, False): ("UTCIMMA", 16),
    (100, True): ("UTCQMMA", 16),
    (103, True): ("UTCQMMA", 16),
    (120, False): ("IMMA.16832.S8.S8", 256),
}


def _cases(target: int, fp8: bool) -> list[CompileCase]:
    instruction, in_loop = _PRODUCTS[target, fp8]
    kind = "fp8" if fp8 else "int8"
    shared_arguments = {"alpha_ptr": "*fp32", "out_ptr": "*bf16"}
    flags = {"HAS_ALPHA": True, "FP8": fp8, "ASM": True, **TILE}
    options: dict[str, Any] = {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES, "targets": (target,)}
    gemm = CompileCase(
        name=f"{kind}_dot/gemm_sm{target}",
        kernel=int8_gemm_kernel,
        arguments={"a_ptr": "*i8", "b_ptr": "*i8", "a_counts_ptr": "*i32", "b_counts_ptr": "*i32"}
        | {name: "i32" for name in ("rows", "columns", "k", "row_bytes")}
        | shared_arguments,
        constants=flags,
        aligned=("rows", "columns", "k", "row_bytes"),
        at_least={instruction: in_loop, "LDGSTS.128": 1, "STG.128": 1, "MEMBAR.GPU": 0},
        in_loop={instruction: in_loop},
        quick=target == 100,
        **options,
    )
    numbers = ("pixels", "out_channels", "height", "width", "out_height", "out_width", "pad_y", "pad_x")
    conv = CompileCase(
        name=f"{kind}_dot/conv2d_3x3_c128_sm{target}",
        kernel=int8_conv2d_kernel,
        arguments={"words_ptr": "*i8", "filters_ptr": "*i8", "window_counts_ptr": "*i32", "border_class_ptr": "*i32"}
        | {"table_ptr": "*i32", "sums_ptr": "*i64", "squares_ptr": "*i64"}
        | dict.fromkeys(numbers, "i32")
        | shared_arguments,
        constants={"KERNEL_Y": 3, "KERNEL_X": 3, "PIXEL_BYTES": 16, "BN_SUMS": True, **flags}
        | dict.fromkeys(("stride_y", "stride_x", "dilation_y", "dilation_x"), 1),
        aligned=("pixels", "out_channels"),
        at_least={instruction: in_loop, "LDGSTS.128": 1, "STG.128": 1, "REDG": 1, "MEMBAR.GPU": 0},
        in_loop={instruction: in_loop},
        **options,
    )
    return [gemm, conv]


COMPILE_CASES = [case for target, fp8 in _PRODUCTS for case in _cases(target, fp8)]
