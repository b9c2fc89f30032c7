"""Binary convolution on the 1-bit tensor cores of compute capability 8.0 to 9.0: an implicit matrix product, in Gluon.

The matrix product of ``bmma_gemm.py`` with rows = output pixels, columns = output channels and K = the taps times the
words of a pixel. The image is never unfolded: word k of a row is word ``k % Cw`` of the pixel under tap ``k // Cw``,
copied by cp.async, which fills words outside the image with 0. What becomes of the
popcounts stands in ``conv_launch.py``.
"""

from __future__ import annotations

from math import gcd

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from bnnedge.kernels.gpu.bmma import (
    Config,
    as_matrix,
    config_for,
    configs_and_targets,
    loop_instructions,
    multiply,
    program_tile,
    result_layout,
    row_layout,
    scaled,
    shared_layout,
    store,
    work_layout,
)
from bnnedge.kernels.gpu.compile_gate import CompileCase
from bnnedge.kernels.gpu.conv_launch import ConvCall, conv_launcher, positions
from bnnedge.kernels.gpu.gluon_compat import async_load, barrier, commit_group, wait_group

GROUP = 8
"""Number of tiles of pixels that walk down the channels together, so that the filters stay in L2."""

MOST_NARROW_WORDS = gl.constexpr(16383 // 32)
"""Up to this K a thread's sum of squares, 8 rows of at most K squared, fits into int32."""


@gluon.jit
def load_pixels(
    stage,
    corner,
    top,
    left,
    height,
    width,
    dilation_y,
    dilation_x,
    k,
    KERNEL_X: gl.constexpr,
    CHANNEL_WORDS: gl.constexpr,
    K_WORDS: gl.constexpr,
):
    """Copies words ``k`` of the windows whose upper left pixels are ``corner`` (a pointer), ``top`` and ``left``."""
    tap = k // CHANNEL_WORDS
    y = (tap // KERNEL_X * dilation_y)[None, :]
    x = (tap % KERNEL_X * dilation_x)[None, :]
    row, column = top[:, None] + y, left[:, None] + x
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) & (k < K_WORDS)[None, :]
    async_load(stage, corner[:, None] + ((y * width + x) * CHANNEL_WORDS + (k % CHANNEL_WORDS)[None, :]), mask=inside)


@gluon.jit
def column_sums(v, TILE: gl.constexpr):
    """Sums over the rows, int64 [columns]: a thread's own rows in the type of ``v``, the others in int64."""
    own = gl.sum(v.reshape((TILE.warps_m, 2 * TILE.m_tiles, 8, TILE.columns)), axis=1)
    sums = gl.sum(own.to(gl.int64).reshape((8 * TILE.warps_m, TILE.columns)), axis=0)
    return gl.convert_layout(sums, gl.BlockedLayout([1], [32], [TILE.warps], [0]))


@gluon.jit
def bmma_conv2d_kernel(
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
    steps,
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
    KERNEL_Y: gl.constexpr,
    KERNEL_X: gl.constexpr,
    CHANNEL_WORDS: gl.constexpr,
    HAS_BORDER: gl.constexpr,
    HAS_ALPHA: gl.constexpr,
    BN_SUMS: gl.constexpr,
    VECTOR: gl.constexpr,
    GROUP: gl.constexpr,
    CONFIG: gl.constexpr,
):
    TILE: gl.constexpr = CONFIG.tile
    ROWS: gl.constexpr = TILE.rows
    COLUMNS: gl.constexpr = TILE.columns
    WORDS: gl.constexpr = CONFIG.words
    STAGES: gl.constexpr = CONFIG.stages
    K_WORDS: gl.constexpr = KERNEL_Y * KERNEL_X * CHANNEL_WORDS
    tile_m, tile_n = program_tile(gl.cdiv(pixels, ROWS), gl.cdiv(out_channels, COLUMNS), GROUP)

    copy: gl.constexpr = row_layout(WORDS, VECTOR, TILE.warps)
    k = gl.arange(0, WORDS, layout=gl.SliceLayout(0, copy))
    pixel = tile_m * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, copy))
    top = pixel // out_width % out_height * stride_y - pad_y
    left = pixel % out_width * stride_x - pad_x
    image = (pixel // (out_height * out_width)).to(gl.int64)
    corner = words_ptr + ((image * height + top) * width + left) * CHANNEL_WORDS
    top = gl.where(pixel < pixels, top, -(1 << 30))  # rows beyond the last pixel are outside of every image
    channel = tile_n * COLUMNS + gl.arange(0, COLUMNS, layout=gl.SliceLayout(1, copy))
    filter_at = filters_ptr + gl.minimum(channel, out_channels - 1).to(gl.int64)[:, None] * K_WORDS + k[None, :]
    a_shared = gl.allocate_shared_memory(gl.int32, [STAGES, ROWS, WORDS], shared_layout(WORDS))
    b_shared = gl.allocate_shared_memory(gl.int32, [STAGES, COLUMNS, WORDS], shared_layout(WORDS))

    for stage in gl.static_range(STAGES - 1):
        ahead = k + stage * WORDS
        load_pixels(
            *(a_shared.index(stage), corner, top, left, height, width, dilation_y, dilation_x, ahead),
            *(KERNEL_X, CHANNEL_WORDS, K_WORDS),
        )
        async_load(b_shared.index(stage), filter_at + stage * WORDS, mask=(ahead < K_WORDS)[None, :])
        commit_group()
    sums = gl.full(TILE.work_shape, 0, gl.int32, layout=work_layout(TILE))
    for step in range(steps):
        wait_group(STAGES - 2)
        barrier()
        slot = (step + STAGES - 1) % STAGES
        later = k + (step + STAGES - 1) * WORDS
        load_pixels(
            *(a_shared.index(slot), corner, top, left, height, width, dilation_y, dilation_x, later),
            *(KERNEL_X, CHANNEL_WORDS, K_WORDS),
        )
        async_load(b_shared.index(slot), filter_at + (step + STAGES - 1) * WORDS, mask=(later < K_WORDS)[None, :])
        commit_group()
        sums = multiply(a_shared.index(step % STAGES), b_shared.index(step % STAGES), sums, CONFIG)
    wait_group(0)
    barrier()

    result: gl.constexpr = result_layout(TILE)
    m = tile_m * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, result))
    n = tile_n * COLUMNS + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, result))
    window = gl.load(window_counts_ptr + m, mask=m < pixels, other=0)
    v = 4 * as_matrix(sums, TILE) - 2 * window[:, None]
    if HAS_BORDER:
        border = gl.load(border_class_ptr + m % (out_height * out_width), mask=m < pixels, other=0)
        at = border[:, None] * out_channels + n[None, :]
        v += gl.load(table_ptr + at, mask=(n < out_channels)[None, :], other=0)
    else:
        v += gl.load(table_ptr + n, mask=n < out_channels, other=0)[None, :]
    if BN_SUMS:
        counted = gl.where((m < pixels)[:, None], v, 0)
        if K_WORDS > MOST_NARROW_WORDS:
            counted = counted.to(gl.int64)
        total, squares = column_sums(counted, TILE), column_sums(counted * counted, TILE)
        channel = tile_n * COLUMNS + gl.arange(0, COLUMNS, layout=total.type.layout)
        gl.atomic_add(sums_ptr + channel, total, mask=channel < out_channels, sem="relaxed")
        gl.atomic_add(squares_ptr + channel, squares, mask=channel < out_channels, sem="relaxed")
    y = scaled(v, alpha_ptr, n, out_channels, HAS_ALPHA, out_ptr.dtype.element_ty)
    store(out_ptr, y, tile_m * ROWS, tile_n * COLUMNS, pixels, out_channels, TILE)


@conv_launcher
def bconv2d(c: ConvCall) -> None:
    """``reference.bconv2d``. Fastest where the channels are a multiple of 128, which allows 16-byte copies."""
    g, words = c.geometry, c.words.shape[3]
    vector = gcd(4, words, c.words.data_ptr() // 4, c.filters.data_ptr() // 4)
    config = config_for("bconv2d", c.words.device, c.pixels, g.out_channels, vector)
    tiles = triton.cdiv(c.pixels, config.tile.rows) * triton.cdiv(g.out_channels, config.tile.columns)
    bmma_conv2d_kernel[(tiles,)](
        c.words,
        c.filters,
        *c.epilogue_tensors(),
        c.pixels,
        g.out_channels,
        triton.cdiv(g.kernel[0] * g.kernel[1] * words, config.words),
        *positions(g),
        **c.constants(),
        CHANNEL_WORDS=words,
        HAS_BORDER=c.table.shape[0] > 1,
        VECTOR=vector,
        GROUP=GROUP,
        CONFIG=config,
        num_warps=config.tile.warps,
    )


def _case(
    config: Config, targets: tuple[int, ...], channels: int, out: str = "bf16", kernel: int = 3, stride: int = 1
) -> CompileCase:
    """The launch of a training step, with alpha and the sums for BatchNorm, or, with ``out`` i32, of bare integers."""
    vector, trained = gcd(4, channels // 32), out != "i32"
    ones = ("dilation_y", "dilation_x", *(("stride_y", "stride_x") if stride == 1 else ()))
    numbers = ("pixels", "out_channels", "steps", "height", "width", "out_height", "out_width", "pad_y", "pad_x")
    return CompileCase(
        name=f"bmma_conv2d/{config.name}_{kernel}x{kernel}s{stride}_c{channels}_{out}",
        kernel=bmma_conv2d_kernel,
        arguments={"words_ptr": "*i32", "filters_ptr": "*i32", "window_counts_ptr": "*i32", "table_ptr": "*i32"}
        | {"border_class_ptr": "*i32", "out_ptr": f"*{out}"}
        | {name: "i32" for name in (*numbers, *(("stride_y", "stride_x") if stride > 1 else ()))}
        | ({"alpha_ptr": "*fp32", "sums_ptr": "*i64", "squares_ptr": "*i64"} if trained else {}),
        constants={"KERNEL_Y": kernel, "KERNEL_X": kernel, "CHANNEL_WORDS": channels // 32, "HAS_BORDER": kernel > 1}
        | {"HAS_ALPHA": trained, "BN_SUMS": trained, "VECTOR": vector, "GROUP": GROUP, "CONFIG": config}
        | dict.fromkeys(ones, 1)
        | ({} if trained else {"alpha_ptr": None, "sums_ptr": None, "squares_ptr": None}),
        aligned=("pixels", "out_channels"),
        num_warps=config.tile.warps,
        targets=targets,
        at_least={"STG.128": 1, "MEMBAR.GPU": 0} | ({"REDG": 2, "ATOMG": 0} if trained else {}),
        in_loop=loop_instructions(config, vector),
        quick=config.tile.columns == 64 and channels == 64,
    )


COMPILE_CASES = [
    _case(config, targets, **layer)
    for config, targets in configs_and_targets("bconv2d").items()
    for layer in (
        {"channels": 64},
        {"channels": 96, "stride": 2},
        {"channels": 256, "stride": 2, "out": "fp32"},
        {"channels": 512, "kernel": 1, "out": "i32"},
        {"channels": 2048},
    )
]
