"""Gradients of ``bn_clip_pack``: a pass that masks and sums, and a pass that applies the sums.

With ``p = g`` where the mask is 1, else 0, ``d = y - mean``, n elements in a channel and the sums over them

    dy = weight * invstd * (p - sum(p) / n - d * invstd^2 * sum(p * d) / n)

and p is the residual's gradient. The first pass stores it where that is wanted, and the second one reads it then.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnnedge.errors import ConfigError
from bnnedge.kernels.gpu.bits import offsets64, spread_words
from bnnedge.kernels.gpu.bn_statistics import check_maps, check_vectors, store_strip, strip_rows, strips
from bnnedge.kernels.gpu.compile_gate import CompileCase
from bnnedge.kernels.gpu.pack import launch
from bnnedge.kernels.layout import WORD_BITS, words_for


@triton.jit
def bn_gradient_sums_kernel(
    g_ptr,
    mask_ptr,
    y_ptr,
    mean_ptr,
    p_ptr,
    partial_ptr,
    rows,
    steps,
    CHANNELS: tl.constexpr,
    WORDS: tl.constexpr,
    STORES_P: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    word = tl.program_id(1) * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)[None, :]
    channel = tl.program_id(1) * BLOCK_WORDS * 32 + tl.arange(0, BLOCK_WORDS * 32)
    mean = tl.load(mean_ptr + channel, mask=channel < CHANNELS, other=0.0)[None, :]
    total = tl.zeros((BLOCK_ROWS, BLOCK_WORDS * 32), tl.float32)
    along = tl.zeros((BLOCK_ROWS, BLOCK_WORDS * 32), tl.float32)
    for step in range(0, steps):
        row = strip_rows(step, BLOCK_ROWS)
        inside = (row < rows) & (channel < CHANNELS)[None, :]
        at = row * CHANNELS + channel[None, :]
        bits = tl.load(mask_ptr + row * WORDS + word, mask=(row < rows) & (word < WORDS), other=0)
        g = tl.load(g_ptr + at, mask=inside, other=0.0)
        p = tl.where(spread_words(bits, BLOCK_ROWS, BLOCK_WORDS) != 0, g, 0.0)
        if STORES_P:
            tl.store(p_ptr + at, p, mask=inside)
        p = p.to(tl.float32)
        total += p
        along += p * (tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32) - mean)
    store_strip(partial_ptr, total, along, channel, CHANNELS)


@triton.jit
def bn_gradient_kernel(
    g_ptr,
    mask_ptr,
    y_ptr,
    mean_ptr,
    invstd_ptr,
    weight_ptr,
    sums_ptr,
    dy_ptr,
    rows,
    CHANNELS: tl.constexpr,
    WORDS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    row = offsets64(BLOCK_ROWS, 0)[:, None]
    channel = tl.program_id(1) * BLOCK_WORDS * 32 + tl.arange(0, BLOCK_WORDS * 32)[None, :]
    known = channel < CHANNELS
    inside = (row < rows) & known
    at = row * CHANNELS + channel
    count = rows.to(tl.float32)
    mean = tl.load(mean_ptr + channel, mask=known, other=0.0)
    invstd = tl.load(invstd_ptr + channel, mask=known, other=0.0)
    scale = tl.load(weight_ptr + channel, mask=known, other=0.0) * invstd
    constant = tl.load(sums_ptr + channel, mask=known, other=0.0) / count
    slope = tl.load(sums_ptr + CHANNELS + channel, mask=known, other=0.0) * invstd * invstd / count
    p = tl.load(g_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_MASK:
        word = tl.program_id(1) * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)[None, :]
        bits = tl.load(mask_ptr + row * WORDS + word, mask=(row < rows) & (word < WORDS), other=0)
        p = tl.where(spread_words(bits, BLOCK_ROWS, BLOCK_WORDS) != 0, p, 0.0)
    y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dy = scale * (p - constant - (y - mean) * slope)
    tl.store(dy_ptr + at, dy.to(dy_ptr.dtype.element_ty), mask=inside)


def bn_clip_gradient(
    g: Tensor,
    mask: Tensor,
    y: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    needs_residual: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """``reference.bn_clip_gradient`` for contiguous tensors; the residual's is None if it is not needed."""
    check_maps(g=g, y=y)
    channels = y.shape[-1]
    words, rows = words_for(channels), y.numel() // channels
    check_vectors(channels, mean=mean, invstd=invstd, weight=weight)
    if mask.dtype != torch.int32 or mask.shape != (*y.shape[:-1], words) or not mask.is_contiguous():
        raise ConfigError(f"mask must be contiguous int32 {(*y.shape[:-1], words)}, got {tuple(mask.shape)}")
    if rows < 2:
        raise ConfigError("batch normalisation has no gradient for one element in a channel")
    sums_grid, strip = strips(rows, channels)
    partial = y.new_empty((sums_grid[0], 2, channels), dtype=torch.float32)
    p = torch.empty_like(g) if needs_residual else None
    sizes = {"CHANNELS": channels, "WORDS": words}
    bn_gradient_sums_kernel[sums_grid](
        *(g, mask, y, mean, p, partial, rows), STORES_P=needs_residual, num_warps=4, **sizes, **strip
    )
    sums = partial.sum(0)
    dy = torch.empty_like(y)
    grid, blocks = launch(rows, words)
    bn_gradient_kernel[grid](
        *(g if p is None else p, mask if p is None else None, y, mean, invstd, weight, sums, dy, rows),
        HAS_MASK=p is None,
        num_warps=8,
        **sizes,
        **blocks,
    )
    return dy, p, sums[1] * invstd, sums[0]


def _sums_case(kind: str, channels: int, stores_p: bool = True) -> CompileCase:
    _, blocks = strips(1, channels)
    return CompileCase(
        name=f"bn_gradient_sums/{kind}_{channels}{'' if stores_p else '_alone'}",
        kernel=bn_gradient_sums_kernel,
        arguments={"g_ptr": f"*{kind}", "mask_ptr": "*i32", "y_ptr": f"*{kind}", "mean_ptr": "*fp32"}
        | {"partial_ptr": "*fp32", "rows": "i64", "steps": "i32"}
        | ({"p_ptr": f"*{kind}"} if stores_p else {}),
        constants={"CHANNELS": channels, "WORDS": words_for(channels), "STORES_P": stores_p}
        | {"BLOCK_ROWS": blocks["BLOCK_ROWS"], "BLOCK_WORDS": blocks["BLOCK_WORDS"]}
        | ({} if stores_p else {"p_ptr": None}),
        aligned=("rows",),
        at_least={"LDG.128": 2, "STG.128": int(stores_p)} if channels % WORD_BITS == 0 else {},
        blocks_per_sm=4,
        quick=(kind, channels, stores_p) == ("bf16", 64, True),
    )


def _case(kind: str, channels: int, has_mask: bool = False) -> CompileCase:
    return CompileCase(
        name=f"bn_gradient/{kind}_{channels}{'_mask' if has_mask else ''}",
        kernel=bn_gradient_kernel,
        arguments={f"{name}_ptr": "*fp32" for name in ("mean", "invstd", "weight", "sums")}
        | {f"{name}_ptr": f"*{kind}" for name in ("g", "y", "dy")}
        | {"rows": "i64"}
        | ({"mask_ptr": "*i32"} if has_mask else {}),
        constants={"CHANNELS": channels, "WORDS": words_for(channels), "HAS_MASK": has_mask}
        | launch(1, words_for(channels))[1]
        | ({} if has_mask else {"mask_ptr": None}),
        aligned=("rows",),
        num_warps=8,
        at_least={"LDG.128": 2, "STG.128": 1} if channels % WORD_BITS == 0 else {},
        quick=(kind, channels, has_mask) == ("bf16", 64, False),
    )


COMPILE_CASES = [
    *[_sums_case("bf16", channels) for channels in (64, 512)],
    _sums_case("bf16", 16),
    _sums_case("bf16", 64, stores_p=False),
    _sums_case("fp32", 256),
    *[_case("bf16", channels) for channels in (64, 512)],
    _case("bf16", 16),
    _case("bf16", 64, has_mask=True),
    _case("fp32", 256),
]
