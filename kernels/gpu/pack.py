"""Signs, clip mask and popcount of a tensor in one pass: reads each element once, writes 0.25 byte for it."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnnedge.errors import ConfigError
from bnnedge.kernels.gpu.bits import offsets64, pack_words, popcount
from bnnedge.kernels.gpu.compile_gate import CompileCase
from bnnedge.kernels.gpu.reference import Packed
from bnnedge.kernels.layout import WORD_BITS, words_for

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
TILE_BITS = 8192
"""Number of elements in the tile of one program: 64 for each thread of 4 warps."""
COUNT_ROWS = 256


@triton.jit
def sign_pack_kernel(
    x_ptr,
    signs_ptr,
    mask_ptr,
    counts_ptr,
    rows,
    clip,
    CHANNELS: tl.constexpr,
    WORDS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    row = offsets64(BLOCK_ROWS, 0)[:, None]
    counts = tl.zeros((BLOCK_ROWS,), tl.int32)
    for first in range(0, WORDS, BLOCK_WORDS):
        channel = first * 32 + tl.arange(0, BLOCK_WORDS * 32)[None, :]
        inside = (row < rows) & (channel < CHANNELS)
        x = tl.load(x_ptr + row * CHANNELS + channel, mask=inside, other=0.0).to(tl.float32)
        word = first + tl.arange(0, BLOCK_WORDS)[None, :]
        stored = (row < rows) & (word < WORDS)
        signs = pack_words(x < 0, BLOCK_ROWS, BLOCK_WORDS)
        tl.store(signs_ptr + row * WORDS + word, signs, mask=stored)
        if HAS_MASK:
            within = pack_words((tl.abs(x) <= clip) & inside, BLOCK_ROWS, BLOCK_WORDS)
            tl.store(mask_ptr + row * WORDS + word, within, mask=stored)
        counts += tl.sum(popcount(signs), axis=1)
    all_rows = offsets64(BLOCK_ROWS, 0)
    tl.store(counts_ptr + all_rows, counts, mask=all_rows < rows)


@triton.jit
def count_bits_kernel(words_ptr, counts_ptr, rows, WORDS: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    row = offsets64(BLOCK_ROWS, 0)
    counts = tl.zeros((BLOCK_ROWS,), tl.int32)
    for word in range(0, WORDS):
        counts += popcount(tl.load(words_ptr + row * WORDS + word, mask=row < rows, other=0))
    tl.store(counts_ptr + row, counts, mask=row < rows)


def count_bits(words: Tensor) -> Tensor:
    """``reference.count_bits`` for contiguous int32 ``words`` [..., Cw]."""
    if words.dtype != torch.int32 or not words.is_contiguous() or words.numel() == 0:
        raise ConfigError(f"count_bits needs contiguous int32 words, got {words.dtype} {tuple(words.shape)}")
    counts = words.new_empty(words.shape[:-1])
    rows = counts.numel()
    grid = (triton.cdiv(rows, COUNT_ROWS),)
    count_bits_kernel[grid](words, counts, rows, WORDS=words.shape[-1], BLOCK_ROWS=COUNT_ROWS, num_warps=4)
    return counts


def sign_pack(x: Tensor, clip: float = 1.0) -> Packed:
    """``reference.sign_pack`` for contiguous float32, bfloat16 or float16 ``x`` [..., C]."""
    if x.dtype not in FLOATS or not x.is_contiguous() or x.dim() == 0 or x.numel() == 0:
        raise ConfigError(f"sign_pack needs contiguous float32, bfloat16 or float16 [..., C], got {x.dtype} {x.shape}")
    channels = x.shape[-1]
    words, rows = words_for(channels), x.numel() // channels
    signs = x.new_empty((*x.shape[:-1], words), dtype=torch.int32)
    mask = None if math.isinf(clip) else torch.empty_like(signs)
    counts = x.new_empty(x.shape[:-1], dtype=torch.int32)
    block_rows, block_words = tile(words)
    sign_pack_kernel[(triton.cdiv(rows, block_rows),)](
        x,
        signs,
        mask,
        counts,
        rows,
        clip,
        CHANNELS=channels,
        WORDS=words,
        HAS_MASK=mask is not None,
        BLOCK_ROWS=block_rows,
        BLOCK_WORDS=block_words,
        num_warps=4,
    )
    return Packed(signs, mask, counts)


def tile(words: int) -> tuple[int, int]:
    """(rows, words) of a tile of ``TILE_BITS`` over rows of ``words`` words; at most 16 words are taken at a time."""
    block_words = min(triton.next_power_of_2(words), 16)
    return TILE_BITS // WORD_BITS // block_words, block_words


def launch(rows: int, words: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and block sizes of a kernel whose programs take one such tile each."""
    block_rows, block_words = tile(words)
    grid = (triton.cdiv(rows, block_rows), triton.cdiv(words, block_words))
    return grid, {"BLOCK_ROWS": block_rows, "BLOCK_WORDS": block_words}


def _case(dtype: str, channels: int, has_mask: bool = True) -> CompileCase:
    block_rows, block_words = tile(words_for(channels))
    return CompileCase(
        name=f"sign_pack/{dtype}_{channels}{'' if has_mask else '_unclipped'}",
        kernel=sign_pack_kernel,
        arguments={"x_ptr": f"*{dtype}", "signs_ptr": "*i32", "counts_ptr": "*i32", "rows": "i64", "clip": "fp32"}
        | ({"mask_ptr": "*i32"} if has_mask else {}),
        constants={"CHANNELS": channels, "WORDS": words_for(channels), "HAS_MASK": has_mask}
        | {"BLOCK_ROWS": block_rows, "BLOCK_WORDS": block_words}
        | ({} if has_mask else {"mask_ptr": None}),
        aligned=("rows",),
        at_least={"LDG.128": 1} if channels % WORD_BITS == 0 else {},
        quick=(dtype, channels) == ("bf16", 64),
    )


COMPILE_CASES = [
    _case("bf16", 64),
    _case("bf16", 64, has_mask=False),
    _case("bf16", 128),
    _case("bf16", 512),
    _case("bf16", 48),
    _case("fp16", 256),
    _case("fp32", 256),
    CompileCase(
        name="count_bits/256",
        kernel=count_bits_kernel,
        arguments={"words_ptr": "*i32", "counts_ptr": "*i32", "rows": "i64"},
        constants={"WORDS": 8, "BLOCK_ROWS": COUNT_ROWS},
        aligned=("rows",),
        at_least={"POPC": 1},
    ),
]
