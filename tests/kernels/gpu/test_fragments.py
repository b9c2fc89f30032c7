"""The 1-bit tensor core kernels run on a NumPy model of a thread block, driven by the kernel's own tables and PTX.

What the model takes from PTX, not from the kernel, is the instruction itself: which lane holds which bits (PTX ISA,
section "Matrix Fragments for mma.m16n8k256"). Where a table is wrong, bits meet that should not.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("triton")

from bnnedge.kernels.gpu import bmma
from bnnedge.kernels.gpu.bmma import LANES, REGISTERS, WORDS_PER_STEP, Config, Rearrangement, Tile
from bnnedge.kernels.layout import Words, pack
from tests.kernels.gpu.gluon_model import mma_m16n8k256, popcount, run_assembly

Registers = NDArray[np.int64]
"""[warps, lanes, registers of a thread]."""

ALL_CONFIGS = list(dict.fromkeys(c for tables in bmma.CONFIGS.values() for table in tables.values() for c in table))
CONFIGS = [pytest.param(config, id=config.name) for config in ALL_CONFIGS]
TILES = [pytest.param(t, id=f"{t.rows}x{t.columns}") for t in dict.fromkeys(config.tile for config in ALL_CONFIGS)]
# Sizes that no configuration has, all different, so that no two dimensions can be mistaken for each other.
ODD_TILE = Tile(m_tiles=8, n_pairs=2, warps_m=1, warps_n=4)


def places(bases: dict[str, list[list[int]]]) -> Registers:
    """[warps, lanes, registers, 2]: the matrix element of each register, the sum of the bases of its index's bits."""
    axes = []
    for level in ("warp", "lane", "register"):
        vectors = np.array(bases[level], np.int64).reshape(-1, 2)
        index = np.arange(1 << len(vectors))
        axes.append(((index[:, None] >> np.arange(len(vectors))) & 1) @ vectors)
    warps, lanes, registers = axes
    at: Registers = warps[:, None, None] + lanes[None, :, None] + registers[None, None, :]
    return at


def load(matrix: NDArray[np.uint32], bases: dict[str, list[list[int]]]) -> NDArray[np.uint32]:
    at = places(bases)
    loaded: NDArray[np.uint32] = matrix[at[..., 0], at[..., 1]]
    return loaded


def rearranged(matrix: NDArray[np.int64], way: Rearrangement) -> NDArray[np.int64]:
    return matrix.reshape(way.split).transpose(way.order).reshape(way.joined)


def in_work_layout(work: NDArray[np.int64], tile: Tile) -> Registers:
    """What ``work_layout`` gives each thread of a tensor in the work shape, its dimensions of size 1 replicated."""
    full = np.broadcast_to(work, tile.work_shape)  # [m_tiles, n_pairs, warps_m, warps_n, lanes, 8]
    threads = full.transpose(2, 3, 4, 0, 1, 5)  # the last dimension is the fastest, the first the slowest
    return threads.reshape(tile.warps, LANES, tile.m_tiles * tile.n_pairs * REGISTERS)


def multiply(a: Words, b: Words, config: Config) -> NDArray[np.int64]:
    """``popcount(a & b)`` of [rows, words] and [columns, words] as a thread block computes it."""
    tile = config.tile
    sums = np.zeros((tile.warps, tile.m_tiles, tile.n_pairs, LANES, REGISTERS), np.int64)
    for step in range(config.words // WORDS_PER_STEP):
        words = slice(step * WORDS_PER_STEP, (step + 1) * WORDS_PER_STEP)
        left = load(a[:, words], tile.a_bases()).reshape(tile.warps, LANES, tile.m_tiles, 1, REGISTERS)
        right = load(b[:, words], tile.b_bases()).reshape(tile.warps, LANES, 1, tile.n_pairs, REGISTERS)
        sums = run_assembly(bmma.mma_assembly(), np.moveaxis(left, 1, 3), np.moveaxis(right, 1, 3), sums)
    result = np.full((tile.rows, tile.columns), -1, np.int64)
    at = places(tile.c_bases())
    result[at[..., 0], at[..., 1]] = np.moveaxis(sums, 3, 1).reshape(tile.warps, LANES, -1)
    return result


@pytest.mark.parametrize("config", [*CONFIGS, pytest.param(Config(ODD_TILE, 16), id="odd")])
def test_a_block_multiplies(config: Config) -> None:
    rng = np.random.default_rng(0)
    k = 32 * config.words - 33  # spare bits and a spare word are 0
    signs = [rng.choice(np.array([-1, 1]), (size, k)) for size in (config.tile.rows, config.tile.columns)]
    a, b = (np.pad(pack(side), ((0, 0), (0, config.words - pack(side).shape[1]))) for side in signs)

    both = multiply(a, b, config)
    dot = 4 * both - 2 * popcount(a).sum(1)[:, None] - 2 * popcount(b).sum(1)[None, :] + k
    assert np.array_equal(dot, signs[0] @ signs[1].T)


@pytest.mark.parametrize("tile", [*TILES, pytest.param(ODD_TILE, id="odd")])
@pytest.mark.parametrize("operand", ["a", "b", "c"])
def test_no_register_moves_between_the_matrix_and_the_work_shape(tile: Tile, operand: str) -> None:
    bases, way, shape = {
        "a": (tile.a_bases(), tile.a_to_work(), (tile.rows, WORDS_PER_STEP)),
        "b": (tile.b_bases(), tile.b_to_work(), (tile.columns, WORDS_PER_STEP)),
        "c": (tile.c_bases(), tile.work_to_c(), tile.work_shape),
    }[operand]
    if operand == "c":  # from the work shape to the matrix: number the registers, follow, and look where they went
        owners = in_work_layout(np.arange(np.prod(shape)).reshape(shape), tile)
        matrix = rearranged(np.arange(np.prod(shape)).reshape(shape), way)
        at = places(bases)
        assert np.array_equal(matrix[at[..., 0], at[..., 1]], owners)
        return
    matrix = np.arange(np.prod(shape)).reshape(shape)
    at = places(bases)
    loaded = matrix[at[..., 0], at[..., 1]]  # [warps, lanes, tiles * 8]
    work = in_work_layout(rearranged(matrix, way), tile).reshape(
        tile.warps, LANES, tile.m_tiles, tile.n_pairs, REGISTERS
    )
    own = work[:, :, :, 0] if operand == "a" else work[:, :, 0]
    assert np.array_equal(loaded, own.reshape(tile.warps, LANES, -1))


def test_the_model_of_the_instruction_is_a_matrix_product() -> None:
    """Each lane's registers numbered by hand from the PTX tables give the product of the matrices they stand for."""
    rng = np.random.default_rng(1)
    a, b = (rng.integers(0, 2**32, (size, 8), dtype=np.uint32) for size in (16, 8))
    lanes = np.arange(32)
    g, t = lanes // 4, lanes % 4
    fragments = np.stack([a[g, t], a[g + 8, t], a[g, t + 4], a[g + 8, t + 4]], 1), np.stack([b[g, t], b[g, t + 4]], 1)
    c = mma_m16n8k256(*fragments, np.zeros((32, 4), np.int64))
    expected = popcount(a[:, None] & b[None]).sum(-1)
    assert np.array_equal(
        c, np.stack([expected[g, 2 * t], expected[g, 2 * t + 1], expected[g + 8, 2 * t], expected[g + 8, 2 * t + 1]], 1)
    )


@pytest.mark.parametrize(
    ("rows", "columns", "vector", "expected"),
    [
        (8192, 8192, 4, "128x256x1024"),
        (8192, 8192, 1, "128x128x1024"),  # too many addresses
        (8192, 128, 4, "64x64x1024"),  # fewer tiles than multiprocessors
        (802816, 64, 4, "128x64x1024"),  # a wider tile would be half empty
        (1, 1, 1, "64x64x1024"),
    ],
)
def test_choice_of_the_tile(rows: int, columns: int, vector: int, expected: str) -> None:
    assert bmma.choose(bmma.CONFIGS["xnor_gemm"][90], rows, columns, vector, processors=132).name == expected
