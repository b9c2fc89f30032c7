"""Binary tensor cores through ``mma.sync.m16n8k256``: the fragment tables and the Gluon functions that follow them.

The instruction multiplies 16 rows by 8 columns of 256 bits and adds ``popcount(a AND b)`` to int32. A warp holds the
operands in registers that PTX prescribes (PTX ISA, "Matrix fragments for mma.m16n8k256"). With lane = 4 g + t, each
register being 32 consecutive bits of K:

    a0 (row g, word t)   a1 (row g + 8, word t)   a2 (row g, word t + 4)   a3 (row g + 8, word t + 4)
    b0 (column g, word t)   b1 (column g, word t + 4)
    c0 (row g, column 2 t)   c1 (g, 2 t + 1)   c2 (g + 8, 2 t)   c3 (g + 8, 2 t + 1)

A block of ``warps_m x warps_n`` warps computes ``16 m_tiles x 16 n_pairs`` outputs a warp. One piece of inline assembly
takes 8 registers of each operand: two k256 steps of A, and of B for two neighbouring n8 tiles. Triton hands a piece 8
consecutive elements of a thread, so the operands are brought into the *work shape*

    [m_tiles, n_pairs, warps_m, warps_n, 32 lanes, 8 registers]

whose blocked layout gives each thread exactly its fragment. ``Tile`` holds every table of that way: how a thread loads
A and B from shared memory (bases of a linear layout; as 16-byte rows this is what ldmatrix delivers), and the
reshape, permute, reshape that leads to the work shape or back from it. They are plain Python, so that a NumPy model can
run the same way without a GPU; in the kernel ``assert_trivial`` proves that no register moves.

``popcount(a AND b) = P`` gives the +-1 product as ``K - 2 Ra - 2 Rb + 4 P``, R the popcounts of the two rows. AND,
not XOR: Hopper computes XOR with two ANDs.
"""

from __future__ import annotations

from dataclasses import dataclass

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

WORDS_PER_STEP = 16
"""K words of one piece of assembly: two k256 steps of 8 words."""

LANES = 32
REGISTERS = 8


@dataclass(frozen=True)
class Rearrangement:
    """``x.reshape(split).permute(order).reshape(joined)``."""

    split: tuple[int, ...]
    order: tuple[int, ...]
    joined: tuple[int, ...]


@dataclass(frozen=True)
class Tile:
    """How a thread block divides its output tile."""

    m_tiles: int
    n_pairs: int
    warps_m: int
    warps_n: int

    @property
    def rows(self) -> int:
        """Output rows of the block."""
        return 16 * self.m_tiles * self.warps_m

    @property
    def columns(self) -> int:
        """Output columns of the block."""
        return 16 * self.n_pairs * self.warps_n

    @property
    def warps(self) -> int:
        """Warps of the block."""
        return self.warps_m * self.warps_n

    @property
    def work_shape(self) -> tuple[int, ...]:
        """[m_tiles, n_pairs, warps_m, warps_n, lanes, registers]."""
        return (self.m_tiles, self.n_pairs, self.warps_m, self.warps_n, LANES, REGISTERS)

    def a_bases(self) -> dict[str, list[list[int]]]:
        """Bases [row, word] of A [rows, 16 words]: register bits (row + 8, word + 4, second k256, tiles), lanes, warps."""
        tiles = [[16 * tile, 0] for tile in _powers(self.m_tiles)]
        rows = [[16 * self.m_tiles * warp, 0] for warp in _powers(self.warps_m)]
        return {
            "register": [[8, 0], [0, 4], [0, 8], *tiles],
            "lane": _LANE_BASES,
            "warp": [[0, 0] for _ in _powers(self.warps_n)] + rows,
        }

    def b_bases(self) -> dict[str, list[list[int]]]:
        """Bases [column, word] of B [columns, 16 words]: register bits (word + 4, second k256, column + 8, pairs), ..."""
        pairs = [[16 * pair, 0] for pair in _powers(self.n_pairs)]
        columns = [[16 * self.n_pairs * warp, 0] for warp in _powers(self.warps_n)]
        return {
            "register": [[0, 4], [0, 8], [8, 0], *pairs],
            "lane": _LANE_BASES,
            "warp": columns + [[0, 0] for _ in _powers(self.warps_m)],
        }

    def a_to_work(self) -> Rearrangement:
        """A [rows, 16] to the work shape with one pair and one warp column; register = 4 k256 + 2 (word / 4) + row / 8."""
        return Rearrangement(
            split=(self.warps_m, self.m_tiles, 2, 8, 2, 2, 4),  # warp, tile, row / 8, g, k256, word / 4, t
            order=(1, 0, 3, 6, 4, 5, 2),
            joined=(self.m_tiles, 1, self.warps_m, 1, LANES, REGISTERS),
        )

    def b_to_work(self) -> Rearrangement:
        """B [columns, 16] to the work shape with one tile and one warp row; register = 4 (column / 8) + 2 k256 + word / 4."""
        return Rearrangement(
            split=(self.warps_n, self.n_pairs, 2, 8, 2, 2, 4),  # warp, pair, column / 8, g, k256, word / 4, t
            order=(1, 0, 3, 6, 2, 4, 5),
            joined=(1, self.n_pairs, 1, self.warps_n, LANES, REGISTERS),
        )

    def work_to_c(self) -> Rearrangement:
        """The work shape to C [rows, columns]; register = 4 (column / 8) + 2 (row / 8) + column % 2."""
        return Rearrangement(
            split=(self.m_tiles, self.n_pairs, self.warps_m, self.warps_n, 8, 4, 2, 2, 2),
            order=(2, 0, 7, 4, 3, 1, 6, 5, 8),
            joined=(self.rows, self.columns),
        )


def mma_operands() -> list[tuple[list[int], list[int], list[int]]]:
    """Registers (C, A, B) of the four instructions of one piece of assembly, in order: k256 step, then n8 tile."""
    return [
        (
            [4 * tile + i for i in range(4)],
            [4 * step + i for i in range(4)],
            [4 * tile + 2 * step + i for i in range(2)],
        )
        for step in range(2)
        for tile in range(2)
    ]


def mma_assembly() -> str:
    """PTX of one piece: operands $0-$7 are C, read and written, $8-$15 A, $16-$23 B."""
    lines = []
    for c, a, b in mma_operands():
        accumulators = ", ".join(f"${i}" for i in c)
        left = ", ".join(f"${REGISTERS + i}" for i in a)
        right = ", ".join(f"${2 * REGISTERS + i}" for i in b)
        lines.append(
            "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
            f"{{{accumulators}}}, {{{left}}}, {{{right}}}, {{{accumulators}}};"
        )
    return "\n".join(lines)


def mma_constraints() -> str:
    """Outputs are written before the last input is read (&), the accumulators enter in the registers they leave in."""
    tied = [str(i) for i in range(REGISTERS)]
    return ",".join(["=&r"] * REGISTERS + ["r"] * (2 * REGISTERS) + tied)


_LANE_BASES = [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]]
_ASSEMBLY = gl.constexpr(mma_assembly())
_CONSTRAINTS = gl.constexpr(mma_constraints())


def _powers(size: int) -> list[int]:
    """1, 2, 4, ... below ``size``, a power of two."""
    return [1 << bit for bit in range(size.bit_length() - 1)]


@gluon.constexpr_function
def work_layout(tile):
    return gl.BlockedLayout([tile.m_tiles, tile.n_pairs, 1, 1, 1, REGISTERS], [1, 1, 1, 1, LANES, 1], [1, 1, tile.warps_m, tile.warps_n, 1, 1], [5, 4, 3, 2, 1, 0])
