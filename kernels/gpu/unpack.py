"""Kernels that turn bits into floats: +-1 operands of the dense backward pass, and a masked gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnnedge.errors import ConfigError
from bnnedge.kernels.gpu.bits import offsets64, spread_words
from bnnedge.kernels.gpu.compile_gate import CompileCase
from bnnedge.kernels.gpu.pack import FLOATS, launch
from bnnedge.kernels.layout import WORD_BITS, words_for


@triton.jit
def unpack_signs_kernel(
    words_ptr,
    out_ptr,
    scale_ptr,
    rows,
    rows_per_scale,
    CHANNELS: tl.constexpr,
    WORDS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    row = offsets64(BLOCK_ROWS, 0)[:, None]
    word = tl.program_id(1) * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)[None, :]
    words = tl.load(words_ptr + row * WORDS + word, mask=(row < rows) & (word < WORDS), other=0)
    values = 1.0 - 2.0 * spread_words(words, BLOCK_ROWS, BLOCK_WORDS).to(tl.float32)
    if HAS_SCALE:
        values = values * tl.load(scale_ptr + row // rows_per_scale, mask=row < rows, other=0.0)
    channel = tl.program_id(1) * BLOCK_WORDS * 32 + tl.arange(0, BLOCK_WORDS * 32)[None, :]
    stored = (row < rows) & (channel < CHANNELS)
    tl.store(out_ptr + row * CHANNELS + channel, values.to(out_ptr.dtype.element_ty), mask=stored)


@triton.jit
def mask_gradient_kernel(
    g_ptr,
    mask_ptr,
    out_ptr,
    rows,
    CHANNELS: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    row = offsets64(BLOCK_ROWS, 0)[:, None]
    word = tl.program_id(1) * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)[None, :]
    words = tl.load(mask_ptr + row * WORDS + word, mask=(row < rows) & (word < WORDS), other=0)
    channel = tl.program_id(1) * BLOCK_WORDS * 32 + tl.arange(0, BLOCK_WORDS * 32)[None, :]
    inside = (row < rows) & (channel < CHANNELS)
    at = row * CHANNELS + channel
    g = tl.load(g_ptr + at, mask=inside, other=0.0)
    tl.store(out_ptr + at, tl.where(spread_words(words, BLOCK_ROWS, BLOCK_WORDS) != 0, g, 0.0), mask=inside)


def unpack_signs(words: Tensor, channels: int, dtype: torch.dtype, scale: Tensor | None = None) -> Tensor:
    """``reference.unpack_signs`` for contiguous ``words``."""
    _check_words(words, channels)
    if dtype not in FLOATS:
        raise ConfigError(f"signs unpack to float32, bfloat16 or float16, got {dtype}")
    if scale is not None and (scale.dtype != torch.float32 or scale.shape != words.shape[:1]):
        raise ConfigError(f"scale must be float32 {tuple(words.shape[:1])}, got {scale.dtype} {tuple(scale.shape)}")
    out = words.new_empty((*words.shape[:-1], channels), dtype=dtype)
    rows = words.numel() // words.shape[-1]
    grid, blocks = launch(rows, words.shape[-1])
    unpack_signs_kernel[grid](
        words,
        out,
        scale,
        rows,
        rows // words.shape[0],
        CHANNELS=channels,
        WORDS=words.shape[-1],
        HAS_SCALE=scale is not None,
        num_warps=4,
        **blocks,
    )
    return out


def mask_gradient(g: Tensor, mask: Tensor) -> Tensor:
    """``reference.mask_gradient`` for contiguous tensors."""
    _check_words(mask, g.shape[-1])
    if g.shape[:-1] != mask.shape[:-1]:
        raise ConfigError(f"gradient {tuple(g.shape)} and mask {tuple(mask.shape)} do not match")
    if not g.is_contiguous():
        raise ConfigError("mask_gradient needs a contiguous gradient")
    out = torch.empty_like(g)
    rows = mask.numel() // mask.shape[-1]
    grid, blocks = launch(rows, mask.shape[-1])
    mask_gradient_kernel[grid](g, mask, out, rows, CHANNELS=g.shape[-1], WORDS=mask.shape[-1], num_warps=4, **blocks)
    return out


def _check_words(words: Tensor, channels: int) -> None:
    if words.dtype != torch.int32 or not words.is_contiguous() or words.dim() < 2 or words.numel() == 0:
        raise ConfigError(f"packed words are contiguous int32 [..., Cw], got {words.dtype} {tuple(words.shape)}")
    if words.shape[-1] != words_for(channels):
        raise ConfigError(f"{channels} channels take {words_for(channels)} words, got {words.shape[-1]}")


def _unpack_case(dtype: str, channels: int, has_scale: bool = False) -> CompileCase:
    return CompileCase(
        name=f"unpack_signs/{dtype}_{channels}{'_scaled' if has_scale else ''}",
        kernel=unpack_signs_kernel,
        arguments={"words_ptr": "*i32", "out_ptr": f"*{dtype}", "rows": "i64", "rows_per_scale": "i32"}
        | ({"scale_ptr": "*fp32"} if has_scale else {}),
        constants={"CHANNELS": channels, "WORDS": words_for(channels), "HAS_SCALE": has_scale}
        | launch(1, words_for(channels))[1]
        | ({} if has_scale else {"scale_ptr": None}),
        aligned=("rows",),
        at_least={"STG.128": 1} if channels % WORD_BITS == 0 else {},
        quick=(dtype, channels, has_scale) == ("bf16", 64, False),
    )


def _mask_case(dtype: str, channels: int) -> CompileCase:
    return CompileCase(
        name=f"mask_gradient/{dtype}_{channels}",
        kernel=mask_gradient_kernel,
        arguments={"g_ptr": f"*{dtype}", "mask_ptr": "*i32", "out_ptr": f"*{dtype}", "rows": "i64"},
        constants={"CHANNELS": channels, "WORDS": words_for(channels)} | launch(1, words_for(channels))[1],
        aligned=("rows",),
        at_least={"LDG.128": 1, "STG.128": 1} if channels % WORD_BITS == 0 else {},
        quick=(dtype, channels) == ("bf16", 64),
    )


COMPILE_CASES = [
    *[_unpack_case("bf16", channels) for channels in (64, 128, 512)],
    _unpack_case("bf16", 256, has_scale=True),
    _unpack_case("fp32", 256),
    *[_mask_case("bf16", channels) for channels in (64, 256, 512)],
    _mask_case("fp32", 256),
]
