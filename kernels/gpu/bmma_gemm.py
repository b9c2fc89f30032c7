"""Binary matrix product on the 1-bit tensor cores of compute capability 8.0 to 9.0, in Gluon.

A thread block multiplies one ``Tile`` of ``bmma.py``. Stages of K words come into shared memory by cp.async, which
fills words beyond K with 0; one barrier a stage. Rows beyond the operands read the last row again and are not stored.
"""

from __future__ import annotations

from math import gcd

import torch
import triton
from torch import Tensor
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
from bnnedge.kernels.gpu.gluon_compat import async_load, barrier, commit_group, wait_group
from bnnedge.kernels.gpu.xnor_gemm import check_gemm

GROUP = 8
"""Number of tiles of rows that walk down the columns together, so that the columns stay in L2."""


@gluon.jit
def bmma_gemm_kernel(
    a_ptr,
    b_ptr,
    a_counts_ptr,
    b_counts_ptr,
    alpha_ptr,
    out_ptr,
    rows,
    columns,
    k,
    vectors,
    HAS_ALPHA: gl.constexpr,
    VECTOR: gl.constexpr,
    GROUP: gl.constexpr,
    CONFIG: gl.constexpr,
):
    TILE: gl.constexpr = CONFIG.tile
    ROWS: gl.constexpr = TILE.rows
    COLUMNS: gl.constexpr = TILE.columns
    WORDS: gl.constexpr = CONFIG.words
    STAGES: gl.constexpr = CONFIG.stages
    tile_m, tile_n = program_tile(gl.cdiv(rows, ROWS), gl.cdiv(columns, COLUMNS), GROUP)

    copy: gl.constexpr = row_layout(WORDS, VECTOR, TILE.warps)
    word = gl.arange(0, WORDS, layout=gl.SliceLayout(0, copy))
    m = tile_m * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, copy))
    n = tile_n * COLUMNS + gl.arange(0, COLUMNS, layout=gl.SliceLayout(1, copy))
    # A row is a number of vectors, so that the compiler sees its alignment.
    stride = vectors * VECTOR
    a_at = a_ptr + gl.minimum(m, rows - 1).to(gl.int64)[:, None] * stride + word[None, :]
    b_at = b_ptr + gl.minimum(n, columns - 1).to(gl.int64)[:, None] * stride + word[None, :]
    a_shared = gl.allocate_shared_memory(gl.int32, [STAGES, ROWS, WORDS], shared_layout(WORDS))
    b_shared = gl.allocate_shared_memory(gl.int32, [STAGES, COLUMNS, WORDS], shared_layout(WORDS))

    for stage in gl.static_range(STAGES - 1):
        inside = (word // VECTOR + stage * (WORDS // VECTOR) < vectors)[None, :]
        async_load(a_shared.index(stage), a_at + stage * WORDS, mask=inside)
        async_load(b_shared.index(stage), b_at + stage * WORDS, mask=inside)
        commit_group()
    sums = gl.full(TILE.work_shape, 0, gl.int32, layout=work_layout(TILE))
    for step in range(gl.cdiv(stride, WORDS)):
        wait_group(STAGES - 2)
        barrier()
        ahead = step + STAGES - 1
        inside = (word // VECTOR + ahead * (WORDS // VECTOR) < vectors)[None, :]
        async_load(a_shared.index(ahead % STAGES), a_at + ahead * WORDS, mask=inside)
        async_load(b_shared.index(ahead % STAGES), b_at + ahead * WORDS, mask=inside)
        commit_group()
        sums = multiply(a_shared.index(step % STAGES), b_shared.index(step % STAGES), sums, CONFIG)
    wait_group(0)
    barrier()

    v = 4 * as_matrix(sums, TILE)
    result: gl.constexpr = result_layout(TILE)
    m = tile_m * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, result))
    n = tile_n * COLUMNS + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, result))
    a_counts = gl.load(a_counts_ptr + m, mask=m < rows, other=0)
    b_counts = gl.load(b_counts_ptr + n, mask=n < columns, other=0)
    v += (k - 2 * b_counts)[None, :] - 2 * a_counts[:, None]
    y = scaled(v, alpha_ptr, n, columns, HAS_ALPHA, out_ptr.dtype.element_ty)
    store(out_ptr, y, tile_m * ROWS, tile_n * COLUMNS, rows, columns, TILE)


def xnor_gemm(
    a: Tensor,
    b: Tensor,
    k: int,
    a_counts: Tensor,
    b_counts: Tensor,
    alpha: Tensor | None = None,
    out_dtype: torch.dtype = torch.int32,
) -> Tensor:
    """``reference.xnor_gemm``. Fastest where ``k`` is a multiple of 128, which allows 16-byte copies."""
    check_gemm(a, b, k, a_counts, b_counts, alpha, out_dtype)
    rows, columns, words = a.shape[0], b.shape[0], a.shape[1]
    out = a.new_empty((rows, columns), dtype=out_dtype)
    if out.numel() == 0:
        return out
    vector = gcd(4, words, a.data_ptr() // 4, b.data_ptr() // 4)
    config = config_for("xnor_gemm", a.device, rows, columns, vector)
    tiles = triton.cdiv(rows, config.tile.rows) * triton.cdiv(columns, config.tile.columns)
    bmma_gemm_kernel[(tiles,)](
        a,
        b,
        a_counts,
        b_counts,
        alpha,
        out,
        rows,
        columns,
        k,
        words // vector,
        HAS_ALPHA=alpha is not None,
        VECTOR=vector,
        GROUP=GROUP,
        CONFIG=config,
        num_warps=config.tile.warps,
    )
    return out


def _case(config: Config, targets: tuple[int, ...], out: str, vector: int = 4) -> CompileCase:
    tile, has_alpha = config.tile, out != "i32"
    return CompileCase(
        name=f"bmma_gemm/{config.name}_{out}{'' if vector == 4 else f'_vector{vector}'}",
        kernel=bmma_gemm_kernel,
        arguments={"a_ptr": "*i32", "b_ptr": "*i32", "a_counts_ptr": "*i32", "b_counts_ptr": "*i32"}
        | {"out_ptr": f"*{out}", "rows": "i32", "columns": "i32", "k": "i32", "vectors": "i32"}
        | ({"alpha_ptr": "*fp32"} if has_alpha else {}),
        constants={"HAS_ALPHA": has_alpha, "VECTOR": vector, "GROUP": GROUP, "CONFIG": config}
        | ({} if has_alpha else {"alpha_ptr": None}),
        aligned=("rows", "columns", "k"),
        num_warps=tile.warps,
        targets=targets,
        at_least={"STG.128": 1, "MEMBAR.GPU": 0},
        in_loop=loop_instructions(config, vector),
        quick=config.words == 32 and out == "bf16" and vector == 4,
    )


COMPILE_CASES = [
    _case(config, targets, out, vector)
    for config, targets in configs_and_targets("xnor_gemm").items()
    for out, vector in (("bf16", 4), ("i32", 4), ("fp32", config.least_vector))
]
