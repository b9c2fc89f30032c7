"""Batch normalisation's affine map, the residual addition, and ``sign_pack`` of the result, in one pass.

Steps for each element: ``z = y * scale + shift``; ``z += residual``; round to the stored dtype; store z if it is wanted
(the next residual); pack z's sign, clip mask and popcount. The bits are those of the rounded z, so that they agree with
what is stored.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnnedge.errors import ConfigError
from bnnedge.kernels.gpu.bits import offsets64, pack_words, popcount
from bnnedge.kernels.gpu.compile_gate import CompileCase
from bnnedge.kernels.gpu.pack import FLOATS, tile
from bnnedge.kernels.gpu.reference import Packed
from bnnedge.kernels.layout import WORD_BITS, words_for


@triton.jit
def bn_sign_pack_kernel(
    y_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    z_ptr,
    signs_ptr,
    mask_ptr,
    counts_ptr,
    rows,
    clip,
    CHANNELS: tl.constexpr,
    WORDS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    row = offsets64(BLOCK_ROWS, 0)[:, None]
    counts = tl.zeros((BLOCK_ROWS,), tl.int32)
    for first in range(0, WORDS, BLOCK_WORDS):
        channel = first * 32 + tl.arange(0, BLOCK_WORDS * 32)[None, :]
        inside = (row < rows) & (channel < CHANNELS)
        at = row * CHANNELS + channel
        scale = tl.load(scale_ptr + channel, mask=channel < CHANNELS, other=0.0)
        shift = tl.load(shift_ptr + channel, mask=channel < CHANNELS, other=0.0)
        z = tl.load(y_ptr + at, mask=inside, other=0).to(tl.float32) * scale + shift
        if HAS_RESIDUAL:
            z += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
        rounded = z.to(z_ptr.dtype.element_ty)
        tl.store(z_ptr + at, rounded, mask=inside)
        z = rounded.to(tl.float32)
        word = first + tl.arange(0, BLOCK_WORDS)[None, :]
        stored = (row < rows) & (word < WORDS)
        signs = pack_words((z < 0) & inside, BLOCK_ROWS, BLOCK_WORDS)
        tl.store(signs_ptr + row * WORDS + word, signs, mask=stored)
        if HAS_MASK:
            within = pack_words((tl.abs(z) <= clip) & inside, BLOCK_ROWS, BLOCK_WORDS)
            tl.store(mask_ptr + row * WORDS + word, within, mask=stored)
        counts += tl.sum(popcount(signs), axis=1)
    all_rows = offsets64(BLOCK_ROWS, 0)
    tl.store(counts_ptr + all_rows, counts, mask=all_rows < rows)


def bn_sign_pack(
    y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None = None, clip: float = 1.0
) -> tuple[Tensor, Packed]:
    """``reference.bn_sign_pack`` for contiguous tensors; ``y`` is int32, float32, bfloat16 or float16.

    A GPU contracts product and sum into one rounding, the reference has two: z may differ by 1 ulp of the intermediate.
    """
    channels = y.shape[-1]
    for name, vector in (("scale", scale), ("shift", shift)):
        if vector.dtype != torch.float32 or vector.shape != (channels,):
            raise ConfigError(f"{name} must be float32 ({channels},), got {vector.dtype} {tuple(vector.shape)}")
    if y.dtype not in (*FLOATS, torch.int32) or not y.is_contiguous() or y.numel() == 0:
        raise ConfigError(f"bn_sign_pack needs contiguous int32 or float [..., C], got {y.dtype} {tuple(y.shape)}")
    if residual is not None and (residual.shape != y.shape or not residual.is_contiguous()):
        raise ConfigError(f"residual must be contiguous {tuple(y.shape)}, got {tuple(residual.shape)}")
    words, rows = words_for(channels), y.numel() // channels
    z = torch.empty_like(y, dtype=torch.float32 if residual is None else residual.dtype)
    signs = y.new_empty((*y.shape[:-1], words), dtype=torch.int32)
    mask = None if math.isinf(clip) else torch.empty_like(signs)
    counts = y.new_empty(y.shape[:-1], dtype=torch.int32)
    block_rows, block_words = tile(words)
    bn_sign_pack_kernel[(triton.cdiv(rows, block_rows),)](
        y,
        scale,
        shift,
        residual,
        z,
        signs,
        mask,
        counts,
        rows,
        clip,
        CHANNELS=channels,
        WORDS=words,
        HAS_RESIDUAL=residual is not None,
        HAS_MASK=mask is not None,
        BLOCK_ROWS=block_rows,
        BLOCK_WORDS=block_words,
        num_warps=8,
    )
    return z, Packed(signs, mask, counts)


def _case(y_type: str, residual_type: str | None, channels: int) -> CompileCase:
    block_rows, block_words = tile(words_for(channels))
    z_type = residual_type or "fp32"
    return CompileCase(
        name=f"bn_sign_pack/{y_type}_{channels}{'' if residual_type is None else '_residual'}",
        kernel=bn_sign_pack_kernel,
        arguments={"y_ptr": f"*{y_type}", "scale_ptr": "*fp32", "shift_ptr": "*fp32", "z_ptr": f"*{z_type}"}
        | {"signs_ptr": "*i32", "mask_ptr": "*i32", "counts_ptr": "*i32", "rows": "i64", "clip": "fp32"}
        | ({} if residual_type is None else {"residual_ptr": f"*{residual_type}"}),
        constants={"CHANNELS": channels, "WORDS": words_for(channels), "HAS_MASK": True}
        | {"HAS_RESIDUAL": residual_type is not None, "BLOCK_ROWS": block_rows, "BLOCK_WORDS": block_words}
        | ({"residual_ptr": None} if residual_type is None else {}),
        aligned=("rows",),
        num_warps=8,
        at_least={"LDG.128": 2, "STG.128": 1} if channels % WORD_BITS == 0 else {},
        quick=(y_type, channels) == ("bf16", 64),
    )


COMPILE_CASES = [
    *[_case("bf16", "bf16", channels) for channels in (64, 128, 512)],
    _case("i32", "bf16", 256),
    _case("fp32", None, 256),
]
