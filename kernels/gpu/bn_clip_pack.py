"""Batch normalisation's affine map, the residual addition, the clip to [-1, 1] and the bits of that, in one pass.

Steps for each element: ``x = (y - mean) * (invstd * weight) + bias``; ``x += residual``; round to the stored dtype;
store ``z = clip(x, -1, 1)``, the next residual; pack z's sign for the next binary convolution, its popcount, and
``abs(x) < 1`` for the gradient. The bits are those of the rounded x, so that they agree with what is stored.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnnedge.kernels.gpu.bits import offsets64, pack_words, popcount
from bnnedge.kernels.gpu.bn_statistics import check_maps, check_vectors
from bnnedge.kernels.gpu.compile_gate import CompileCase
from bnnedge.kernels.gpu.pack import tile
from bnnedge.kernels.gpu.reference import Packed, output_type
from bnnedge.kernels.layout import WORD_BITS, words_for


@triton.jit
def bn_clip_pack_kernel(
    y_ptr,
    mean_ptr,
    invstd_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    z_ptr,
    signs_ptr,
    mask_ptr,
    counts_ptr,
    rows,
    CHANNELS: tl.constexpr,
    WORDS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    row = offsets64(BLOCK_ROWS, 0)[:, None]
    counts = tl.zeros((BLOCK_ROWS,), tl.int32)
    for first in range(0, WORDS, BLOCK_WORDS):
        channel = first * 32 + tl.arange(0, BLOCK_WORDS * 32)[None, :]
        known = channel < CHANNELS
        inside = (row < rows) & known
        at = row * CHANNELS + channel
        mean = tl.load(mean_ptr + channel, mask=known, other=0.0)
        scale = tl.load(invstd_ptr + channel, mask=known, other=0.0)
        scale *= tl.load(weight_ptr + channel, mask=known, other=0.0)
        bias = tl.load(bias_ptr + channel, mask=known, other=0.0)
        x = (tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32) - mean) * scale + bias
        if HAS_RESIDUAL:
            x += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x = x.to(z_ptr.dtype.element_ty).to(tl.float32)
        z = tl.where(x > 1, 1.0, tl.where(x < -1, -1.0, x))  # A NaN stays one.
        tl.store(z_ptr + at, z.to(z_ptr.dtype.element_ty), mask=inside)
        word = first + tl.arange(0, BLOCK_WORDS)[None, :]
        stored = (row < rows) & (word < WORDS)
        signs = pack_words((x < 0) & inside, BLOCK_ROWS, BLOCK_WORDS)
        tl.store(signs_ptr + row * WORDS + word, signs, mask=stored)
        within = pack_words((tl.abs(x) < 1) & inside, BLOCK_ROWS, BLOCK_WORDS)
        tl.store(mask_ptr + row * WORDS + word, within, mask=stored)
        counts += tl.sum(popcount(signs), axis=1)
    all_rows = offsets64(BLOCK_ROWS, 0)
    tl.store(counts_ptr + all_rows, counts, mask=all_rows < rows)


def bn_clip_pack(
    y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None
) -> tuple[Tensor, Packed]:
    """``reference.bn_clip_pack`` for contiguous float32, bfloat16 or float16 ``y`` and ``residual``.

    A GPU contracts product and sum into one rounding, the reference has two: x may differ by 1 ulp of the intermediate.
    """
    check_maps(y=y, residual=residual)
    channels = y.shape[-1]
    check_vectors(channels, mean=mean, invstd=invstd, weight=weight, bias=bias)
    words, rows = words_for(channels), y.numel() // channels
    z = torch.empty_like(y, dtype=output_type(y, residual))
    signs, mask = (y.new_empty((*y.shape[:-1], words), dtype=torch.int32) for _ in range(2))
    counts = y.new_empty(y.shape[:-1], dtype=torch.int32)
    block_rows, block_words = tile(words)
    bn_clip_pack_kernel[(triton.cdiv(rows, block_rows),)](
        *(y, mean, invstd, weight, bias, residual, z, signs, mask, counts),
        rows,
        CHANNELS=channels,
        WORDS=words,
        HAS_RESIDUAL=residual is not None,
        BLOCK_ROWS=block_rows,
        BLOCK_WORDS=block_words,
        num_warps=8,
    )
    return z, Packed(signs, mask, counts)


def _case(kind: str, channels: int, residual: bool = True) -> CompileCase:
    block_rows, block_words = tile(words_for(channels))
    return CompileCase(
        name=f"bn_clip_pack/{kind}_{channels}{'_residual' if residual else ''}",
        kernel=bn_clip_pack_kernel,
        arguments={f"{name}_ptr": "*fp32" for name in ("mean", "invstd", "weight", "bias")}
        | {f"{name}_ptr": f"*{kind}" for name in ("y", "z", *(["residual"] if residual else []))}
        | {"signs_ptr": "*i32", "mask_ptr": "*i32", "counts_ptr": "*i32", "rows": "i64"},
        constants={"CHANNELS": channels, "WORDS": words_for(channels), "HAS_RESIDUAL": residual}
        | {"BLOCK_ROWS": block_rows, "BLOCK_WORDS": block_words}
        | ({} if residual else {"residual_ptr": None}),
        aligned=("rows",),
        num_warps=8,
        at_least={"LDG.128": 2, "STG.128": 1} if channels % WORD_BITS == 0 else {},
        quick=(kind, channels) == ("bf16", 64),
    )


COMPILE_CASES = [
    *[_case("bf16", channels) for channels in (64, 128, 256, 512)],
    _case("bf16", 64, residual=False),
    _case("bf16", 16),
    _case("fp32", 256),
]
