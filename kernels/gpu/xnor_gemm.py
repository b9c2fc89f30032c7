"""Binary matrix product of packed rows by AND and popcount, in plain ``tl``: any GPU, and the interpreter.

One word of the reduction at a time: the outer AND of a column of A's words and a row of B's, counted and added. The
popcounts of both sides come from packing, ``v = 4 P - 2 Ra - 2 Rb + K``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnnedge.errors import ConfigError
from bnnedge.kernels.gpu.bits import offsets64, popcount
from bnnedge.kernels.gpu.compile_gate import CompileCase
from bnnedge.kernels.layout import words_for

BLOCK_M, BLOCK_N = 64, 64
OUT_DTYPES = (torch.int32, torch.float32, torch.bfloat16, torch.float16)


@triton.jit
def xnor_gemm_kernel(
    a_ptr,
    b_ptr,
    a_counts_ptr,
    b_counts_ptr,
    alpha_ptr,
    out_ptr,
    rows,
    columns,
    k,
    words,
    HAS_ALPHA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    m = offsets64(BLOCK_M, 0)
    n = offsets64(BLOCK_N, 1)
    both = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for word in range(0, words):
        a = tl.load(a_ptr + m * words + word, mask=m < rows, other=0)
        b = tl.load(b_ptr + n * words + word, mask=n < columns, other=0)
        both += popcount(a[:, None] & b[None, :])
    a_counts = tl.load(a_counts_ptr + m, mask=m < rows, other=0)
    b_counts = tl.load(b_counts_ptr + n, mask=n < columns, other=0)
    v = 4 * both - 2 * a_counts[:, None] + (k - 2 * b_counts)[None, :]
    at = m[:, None] * columns + n[None, :]
    stored = (m < rows)[:, None] & (n < columns)[None, :]
    if HAS_ALPHA:
        alpha = tl.load(alpha_ptr + n, mask=n < columns, other=0.0)
        tl.store(out_ptr + at, (v.to(tl.float32) * alpha[None, :]).to(out_ptr.dtype.element_ty), mask=stored)
    elif out_ptr.dtype.element_ty == tl.int32:
        tl.store(out_ptr + at, v, mask=stored)
    else:
        tl.store(out_ptr + at, v.to(tl.float32).to(out_ptr.dtype.element_ty), mask=stored)


def xnor_gemm(
    a: Tensor,
    b: Tensor,
    k: int,
    a_counts: Tensor,
    b_counts: Tensor,
    alpha: Tensor | None = None,
    out_dtype: torch.dtype = torch.int32,
) -> Tensor:
    """``reference.xnor_gemm`` by AND and popcount."""
    check_gemm(a, b, k, a_counts, b_counts, alpha, out_dtype)
    rows, columns, words = a.shape[0], b.shape[0], a.shape[1]
    out = a.new_empty((rows, columns), dtype=out_dtype)
    xnor_gemm_kernel[(triton.cdiv(rows, BLOCK_M), triton.cdiv(columns, BLOCK_N))](
        a,
        b,
        a_counts,
        b_counts,
        alpha,
        out,
        rows,
        columns,
        k,
        words,
        HAS_ALPHA=alpha is not None,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
        num_warps=4,
    )
    return out


def check_gemm(
    a: Tensor, b: Tensor, k: int, a_counts: Tensor, b_counts: Tensor, alpha: Tensor | None, out_dtype: torch.dtype
) -> None:
    """Raises ``ConfigError`` for arguments that are not those of ``reference.xnor_gemm``."""
    for name, words in (("a", a), ("b", b)):
        if (
            words.dtype != torch.int32
            or words.dim() != 2
            or words.shape[1] != words_for(k)
            or not words.is_contiguous()
        ):
            raise ConfigError(
                f"{name} must be contiguous int32 [rows, {words_for(k)}] for k={k}, "
                f"got {words.dtype} {tuple(words.shape)}"
            )
    check_vector("a_counts", a_counts, torch.int32, a.shape[0])
    check_vector("b_counts", b_counts, torch.int32, b.shape[0])
    check_output(alpha, out_dtype, b.shape[0])


def check_output(alpha: Tensor | None, out_dtype: torch.dtype, columns: int) -> None:
    """Raises ``ConfigError`` unless ``out_dtype`` and ``alpha`` go together."""
    if out_dtype not in OUT_DTYPES:
        raise ConfigError(f"out_dtype is int32, float32, bfloat16 or float16, got {out_dtype}")
    if alpha is not None:
        if out_dtype == torch.int32:
            raise ConfigError("alpha scales a float output; with out_dtype int32 leave it out")
        check_vector("alpha", alpha, torch.float32, columns)


def check_vector(name: str, vector: Tensor, dtype: torch.dtype, length: int) -> None:
    """Raises ``ConfigError`` unless ``vector`` holds ``length`` contiguous values of ``dtype``."""
    if vector.dtype != dtype or vector.numel() != length or not vector.is_contiguous():
        raise ConfigError(f"{name} must be {length} contiguous {dtype}, got {vector.dtype} {tuple(vector.shape)}")


def _case(out: str, has_alpha: bool) -> CompileCase:
    return CompileCase(
        name=f"xnor_gemm/{out}{'_scaled' if has_alpha else ''}",
        kernel=xnor_gemm_kernel,
        arguments={"a_ptr": "*i32", "b_ptr": "*i32", "a_counts_ptr": "*i32", "b_counts_ptr": "*i32"}
        | {"out_ptr": f"*{out}", "rows": "i64", "columns": "i32", "k": "i32", "words": "i32"}
        | ({"alpha_ptr": "*fp32"} if has_alpha else {}),
        constants={"HAS_ALPHA": has_alpha, "BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N}
        | ({} if has_alpha else {"alpha_ptr": None}),
        aligned=("rows", "columns", "k", "words"),
        at_least={"POPC": 1},
        quick=has_alpha and out == "bf16",
    )


COMPILE_CASES = [_case("i32", False), _case("fp32", False), _case("bf16", True), _case("fp16", True)]
