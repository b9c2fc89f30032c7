"""Mean and standard deviation of each channel over a batch, and the running statistics that follow them.

The sums come from the epilogue of a binary convolution, exact and for nothing, or from one pass over its output. That
pass sums ``y - origin`` and its square, where the origin is the channel's first element: a mean far from 0 cancels no
digits of the variance then. Each program sums every so many blocks of rows; the order, and so the result, is the same
on every GPU and in every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnnedge.errors import ConfigError
from bnnedge.kernels.gpu.compile_gate import CompileCase
from bnnedge.kernels.gpu.pack import FLOATS
from bnnedge.kernels.layout import WORD_BITS, words_for

STRIP_BITS = 2048
"""Elements of the tile in which a program sums: 16 per thread and sum at 4 warps."""
MOST_PROGRAMS = 512
"""Most programs in a pass that sums: about four for each multiprocessor of a large GPU."""
BLOCK_CHANNELS = 32


@triton.jit
def strip_rows(step, BLOCK_ROWS: tl.constexpr):
    """Rows (int64) of block number ``step`` of this program, which takes every ``num_programs``-th one."""
    block = tl.program_id(0).to(tl.int64) + step * tl.num_programs(0)
    return (block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]


@triton.jit
def store_strip(partial_ptr, first, second, channel, CHANNELS: tl.constexpr):
    """Stores the sums over the rows of two tiles in [strips, 2, C]."""
    partial_ptr += tl.program_id(0) * 2 * CHANNELS + channel
    tl.store(partial_ptr, tl.sum(first, axis=0), mask=channel < CHANNELS)
    tl.store(partial_ptr + CHANNELS, tl.sum(second, axis=0), mask=channel < CHANNELS)


@triton.jit
def channel_sums_kernel(
    y_ptr, partial_ptr, rows, steps, CHANNELS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WORDS: tl.constexpr
):
    channel = tl.program_id(1) * BLOCK_WORDS * 32 + tl.arange(0, BLOCK_WORDS * 32)
    origin = tl.load(y_ptr + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((BLOCK_ROWS, BLOCK_WORDS * 32), tl.float32)
    squares = tl.zeros((BLOCK_ROWS, BLOCK_WORDS * 32), tl.float32)
    for step in range(0, steps):
        row = strip_rows(step, BLOCK_ROWS)
        inside = (row < rows) & (channel < CHANNELS)[None, :]
        y = tl.load(y_ptr + row * CHANNELS + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        y = tl.where(inside, y - origin, 0.0)
        total += y
        squares += y * y
    store_strip(partial_ptr, total, squares, channel, CHANNELS)


@triton.jit
def statistics_kernel(
    sums_ptr,
    unit_ptr,
    running_mean_ptr,
    running_var_ptr,
    mean_ptr,
    invstd_ptr,
    rows,
    channels,
    eps,
    momentum,
    OF_INTEGERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = channel < channels
    count = rows.to(tl.float64)
    mean = tl.load(sums_ptr + channel, mask=known, other=0).to(tl.float64) / count
    var = tl.load(sums_ptr + channels + channel, mask=known, other=0).to(tl.float64) / count - mean * mean
    unit = tl.load(unit_ptr + channel, mask=known, other=0.0).to(tl.float64)
    if OF_INTEGERS:
        mean, var = mean * unit, var * unit * unit
    else:
        mean += unit
    var = tl.where(var < 0, 0.0, var)  # A NaN stays one.
    tl.store(mean_ptr + channel, mean.to(tl.float32), mask=known)
    tl.store(invstd_ptr + channel, (1 / tl.sqrt(var + eps)).to(tl.float32), mask=known)
    old_mean = tl.load(running_mean_ptr + channel, mask=known, other=0.0)
    old_var = tl.load(running_var_ptr + channel, mask=known, other=0.0)
    new_mean = momentum * mean.to(tl.float32) + (1 - momentum) * old_mean
    new_var = momentum * (var * (count / (count - 1))).to(tl.float32) + (1 - momentum) * old_var
    tl.store(running_mean_ptr + channel, new_mean, mask=known)
    tl.store(running_var_ptr + channel, new_var, mask=known)


def batch_statistics(
    y: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    momentum: float,
    sums: Tensor | None = None,
    alpha: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``reference.batch_statistics`` of contiguous ``y`` [..., C]; the running ones, float32 [C], move towards the mean
    and the unbiased variance by ``momentum``.

    With ``sums``, of ``reference.Convolved``, y is those integers times ``alpha`` (float32 [C]) and is not read.
    """
    check_maps(y=y)
    channels = y.shape[-1]
    rows = y.numel() // channels
    check_vectors(channels, running_mean=running_mean, running_var=running_var)
    if rows < 2:
        raise ConfigError("batch statistics need more than one element in a channel")
    if sums is None:
        grid, blocks = strips(rows, channels)
        partial = y.new_empty((grid[0], 2, channels), dtype=torch.float32)
        channel_sums_kernel[grid](y, partial, rows, CHANNELS=channels, num_warps=4, **blocks)
        sums, unit = partial.sum(0), y.view(rows, channels)[0]
    else:
        if alpha is None or sums.dtype != torch.int64 or sums.shape != (2, channels) or not sums.is_contiguous():
            raise ConfigError(f"sums must be int64 {(2, channels)} with alpha, got {sums.dtype} {tuple(sums.shape)}")
        check_vectors(channels, alpha=alpha)
        unit = alpha
    mean, invstd = torch.empty_like(running_mean), torch.empty_like(running_mean)
    statistics_kernel[(triton.cdiv(channels, BLOCK_CHANNELS),)](
        *(sums, unit, running_mean, running_var, mean, invstd),
        rows,
        channels,
        eps,
        momentum,
        OF_INTEGERS=sums.dtype == torch.int64,
        BLOCK=BLOCK_CHANNELS,
        num_warps=1,
    )
    return mean, invstd


def strips(rows: int, channels: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid (strips, blocks of channels) and block sizes of a pass that sums over ``rows``; ``steps`` is the number of
    blocks of rows that each strip takes."""
    block_words = min(triton.next_power_of_2(words_for(channels)), 4)
    block_rows = STRIP_BITS // WORD_BITS // block_words
    across = triton.cdiv(words_for(channels), block_words)
    blocks = triton.cdiv(rows, block_rows)
    down = min(blocks, max(1, MOST_PROGRAMS // across))
    sizes = {"steps": triton.cdiv(blocks, down), "BLOCK_ROWS": block_rows, "BLOCK_WORDS": block_words}
    return (down, across), sizes


def check_maps(**maps: Tensor | None) -> None:
    """Raises ``ConfigError`` unless all are contiguous floats of one shape [..., C]."""
    shape = next(tensor.shape for tensor in maps.values() if tensor is not None)
    for name, tensor in maps.items():
        if tensor is not None and (
            tensor.dtype not in FLOATS or tensor.shape != shape or not tensor.is_contiguous() or tensor.numel() == 0
        ):
            raise ConfigError(
                f"{name} must be contiguous float32, bfloat16 or float16 {tuple(shape)}, "
                f"got {tensor.dtype} {tuple(tensor.shape)}"
            )


def check_vectors(channels: int, **vectors: Tensor) -> None:
    """Raises ``ConfigError`` unless all are contiguous float32 [channels]."""
    for name, vector in vectors.items():
        if vector.dtype != torch.float32 or vector.shape != (channels,) or not vector.is_contiguous():
            raise ConfigError(f"{name} must be float32 ({channels},), got {vector.dtype} {tuple(vector.shape)}")


def _sums_case(kind: str, channels: int) -> CompileCase:
    _, blocks = strips(1, channels)
    return CompileCase(
        name=f"channel_sums/{kind}_{channels}",
        kernel=channel_sums_kernel,
        arguments={"y_ptr": f"*{kind}", "partial_ptr": "*fp32", "rows": "i64", "steps": "i32"},
        constants={"CHANNELS": channels, "BLOCK_ROWS": blocks["BLOCK_ROWS"], "BLOCK_WORDS": blocks["BLOCK_WORDS"]},
        aligned=("rows",),
        at_least={"LDG.128": 1} if channels % WORD_BITS == 0 else {},
        blocks_per_sm=4,
        quick=(kind, channels) == ("bf16", 64),
    )


def _statistics_case(of_integers: bool) -> CompileCase:
    return CompileCase(
        name=f"statistics/{'integers' if of_integers else 'bf16'}",
        kernel=statistics_kernel,
        arguments={"sums_ptr": "*i64" if of_integers else "*fp32", "unit_ptr": "*fp32" if of_integers else "*bf16"}
        | {f"{name}_ptr": "*fp32" for name in ("running_mean", "running_var", "mean", "invstd")}
        | {"rows": "i64", "channels": "i32", "eps": "fp32", "momentum": "fp32"},
        constants={"OF_INTEGERS": of_integers, "BLOCK": BLOCK_CHANNELS},
        aligned=("rows", "channels"),
        num_warps=1,
    )


COMPILE_CASES = [
    *[_sums_case("bf16", channels) for channels in (64, 512)],
    _sums_case("bf16", 16),
    _sums_case("fp32", 256),
    _statistics_case(True),
    _statistics_case(False),
]
