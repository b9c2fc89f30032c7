"""Binary matrix product of packed operands against bf16 and int8 products of the same +-1 values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bnnedge.benchmarks.gpu.measure import Amount, Implementation, require_equal
from bnnedge.errors import ConfigError
from bnnedge.kernels.gpu import reference, roofline
from bnnedge.kernels.gpu.bmma import Tile, config_for
from bnnedge.kernels.gpu.roofline import Arithmetic, Gpu
from bnnedge.kernels.gpu.select import PACKED
from bnnedge.kernels.layout import WORD_BITS

CHECKED = 64
"""Number of rows and of columns of the product that are compared with the reference, evenly spaced."""

PEER_TILE = Tile(m_tiles=4, n_pairs=4, warps_m=2, warps_n=4)
"""128 x 256, one of cuBLAS's larger tiles. The model of what its product reads from the L2 cache assumes it."""


def modelled_gpu(device: torch.device) -> Gpu | None:
    """The GPU whose limits stand beside the times; None for a CPU and for a GPU that ``roofline.py`` does not know."""
    if device.type != "cuda":
        return None
    try:
        return roofline.gpu_named(torch.cuda.get_device_name(device))
    except ConfigError:
        return None


def output_dtype(device: torch.device) -> torch.dtype:
    """bf16, as in training; float32 in the interpreter, which truncates where a GPU rounds to bf16."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def random_words(rows: int, k: int, device: torch.device) -> Tensor:
    """Random signs, int32 [rows, k / 32]."""
    shape = (rows, k // WORD_BITS)
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64, device=device).to(torch.int32)


def counts_of(words: Tensor) -> Tensor:
    """Number of bits that are 1 in each row, int32 [rows].

    It is counted a few rows at a time, since the reference spreads every bit to a number.
    """
    chunks = torch.split(words, max(1, 2**22 // words.shape[1]))
    return torch.cat([reference.unpack_bits(c, c.shape[1] * WORD_BITS).sum(-1, dtype=torch.int32) for c in chunks])


def implementations(size: int, device: torch.device, names: Sequence[str]) -> tuple[Amount, list[Implementation]]:
    """The product of two ``size`` x ``size`` matrices by our kernels ``names``, which scale it by ``alpha`` and give
    bf16 as in training, and by the peers."""
    a, b = random_words(size, size, device), random_words(size, size, device)
    a_counts, b_counts = counts_of(a), counts_of(b)
    alpha = torch.rand(size, device=device) + 0.5
    found = [_ours(name, a, b, size, a_counts, b_counts, alpha) for name in names]
    left, right = (reference.unpack_signs(words, size, torch.bfloat16) for words in (a, b))
    out = torch.empty((size, size), dtype=torch.bfloat16, device=device)
    found.append(
        Implementation("torch bf16", lambda: torch.mm(left, right.T, out=out), None, _peer_us(device, size, "bf16"))
    )
    left8, right8 = left.to(torch.int8), right.to(torch.int8)
    int8_us = _peer_us(device, size, "int8")
    found.append(Implementation("torch._int_mm", lambda: torch._int_mm(left8, right8.T), None, int8_us))
    return Amount(2.0 * size**3, "ops"), found


def _ours(name: str, a: Tensor, b: Tensor, k: int, a_counts: Tensor, b_counts: Tensor, alpha: Tensor) -> Implementation:
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

    return Implementation(name, work, check, _our_us(name, a, b, k))


def _our_us(name: str, a: Tensor, b: Tensor, k: int) -> float | None:
    gpu = modelled_gpu(a.device)
    if gpu is None or name != "bmma":
        return None
    tile = config_for("xnor_gemm", a.device, len(a), len(b), 4).tile
    return roofline.gemm(gpu, len(a), len(b), k, tile, 2).seconds * 1e6


def _peer_us(device: torch.device, size: int, arithmetic: Arithmetic) -> float | None:
    gpu = modelled_gpu(device)
    out_bytes = 2 if arithmetic == "bf16" else 4
    return None if gpu is None else roofline.gemm(gpu, size, size, size, PEER_TILE, out_bytes, arithmetic).seconds * 1e6
