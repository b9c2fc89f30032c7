"""Binary matrix product of packed operands against bf16 and int8 products of the same +-1 values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bnnedge.benchmarks.gpu.measure import Amount, Contender, require_equal
from bnnedge.kernels.gpu import reference
from bnnedge.kernels.gpu.select import PACKED
from bnnedge.kernels.layout import WORD_BITS

CHECKED = 64
"""Rows and columns of the product that are compared with the reference: the first, the last and others between."""


def output_dtype(device: torch.device) -> torch.dtype:
    """bf16, as training has it; float32 in the interpreter, which truncates where a GPU rounds to bf16."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def random_words(rows: int, k: int, device: torch.device) -> Tensor:
    """Random signs, int32 [rows, k / 32]."""
    shape = (rows, k // WORD_BITS)
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64, device=device).to(torch.int32)


def counts_of(words: Tensor) -> Tensor:
    """Bits that are 1 in each row, int32 [rows]; a few rows at a time, since the reference spreads every bit."""
    chunks = torch.split(words, max(1, 2**22 // words.shape[1]))
    return torch.cat([reference.unpack_bits(c, c.shape[1] * WORD_BITS).sum(-1, dtype=torch.int32) for c in chunks])


def contenders(
    size: int, device: torch.device, implementations: Sequence[str], models: Any = None
) -> tuple[Amount, list[Contender]]:
    """``size`` rows, columns and products a sum; ours scale by ``alpha`` and give bf16, as in training."""
    a, b = random_words(size, size, device), random_words(size, size, device)
    a_counts, b_counts = counts_of(a), counts_of(b)
    alpha = torch.rand(size, device=device) + 0.5
    found: list[Contender] = []
    for name in implementations:
        found.append(_ours(name, a, b, size, a_counts, b_counts, alpha, models))
    left, right = (reference.unpack_signs(words, size, torch.bfloat16) for words in (a, b))
    out = torch.empty((size, size), dtype=torch.bfloat16, device=device)
    found.append(Contender("torch bf16", lambda: torch.mm(left, right.T, out=out)))
    left8, right8 = left.to(torch.int8), right.to(torch.int8)
    found.append(Contender("torch._int_mm", lambda: torch._int_mm(left8, right8.T)))
    return Amount(2.0 * size**3, "ops"), found


def _ours(
    name: str, a: Tensor, b: Tensor, k: int, a_counts: Tensor, b_counts: Tensor, alpha: Tensor, models: Any
) -> Contender:
    gemm = PACKED["xnor_gemm"].load(name)

    def work() -> Tensor:
        product: Tensor = gemm(a, b, k, a_counts, b_counts, alpha, output_dtype(a.device))
        return product

    def check() -> None:
        rows = torch.linspace(0, len(a) - 1, min(CHECKED, len(a)), device=a.device).long()
        columns = torch.linspace(0, len(b) - 1, min(CHECKED, len(b)), device=a.device).long()
        expected = reference.xnor_gemm(
            a[rows], b[columns], k, a_counts[rows], b_counts[columns], alpha[columns], output_dtype(a.device)
        )
        require_equal(f"xnor_gemm by {name}", work()[rows][:, columns], expected)

    modelled = None if models is None else models.gemm_us(name, len(a), len(b), k)
    return Contender(name, work, check, modelled)
