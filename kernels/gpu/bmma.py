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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from bnnedge.errors import ConfigError
from bnnedge.kernels.gpu.gluon_compat import BARRIERS_OF_A_STAGE

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
        """Bases [row, word] of A [rows, 16 words]; register bits: row + 8, word + 4, second k256 step, tiles."""
        tiles = [[16 * tile, 0] for tile in _powers(self.m_tiles)]
        rows = [[16 * self.m_tiles * warp, 0] for warp in _powers(self.warps_m)]
        return {
            "register": [[8, 0], [0, 4], [0, 8], *tiles],
            "lane": _LANE_BASES,
            "warp": [[0, 0] for _ in _powers(self.warps_n)] + rows,
        }

    def b_bases(self) -> dict[str, list[list[int]]]:
        """Bases [column, word] of B [columns, 16 words]; register bits: word + 4, second k256, column + 8, pairs."""
        pairs = [[16 * pair, 0] for pair in _powers(self.n_pairs)]
        columns = [[16 * self.n_pairs * warp, 0] for warp in _powers(self.warps_n)]
        return {
            "register": [[0, 4], [0, 8], [8, 0], *pairs],
            "lane": _LANE_BASES,
            "warp": columns + [[0, 0] for _ in _powers(self.warps_m)],
        }

    def c_bases(self) -> dict[str, list[list[int]]]:
        """Bases [row, column] of C [rows, columns]; register bits: column + 1, row + 8, column + 8, pairs, tiles."""
        pairs = [[0, 16 * pair] for pair in _powers(self.n_pairs)]
        tiles = [[16 * tile, 0] for tile in _powers(self.m_tiles)]
        columns = [[0, 16 * self.n_pairs * warp] for warp in _powers(self.warps_n)]
        rows = [[16 * self.m_tiles * warp, 0] for warp in _powers(self.warps_m)]
        return {
            "register": [[0, 1], [8, 0], [0, 8], *pairs, *tiles],
            "lane": [[0, 2], [0, 4], [1, 0], [2, 0], [4, 0]],
            "warp": columns + rows,
        }

    def a_to_work(self) -> Rearrangement:
        """A [rows, 16] to the work shape, one pair, one warp column; register = 4 k256 + 2 (word / 4) + row / 8."""
        return Rearrangement(
            split=(self.warps_m, self.m_tiles, 2, 8, 2, 2, 4),  # warp, tile, row / 8, g, k256, word / 4, t
            order=(1, 0, 3, 6, 4, 5, 2),
            joined=(self.m_tiles, 1, self.warps_m, 1, LANES, REGISTERS),
        )

    def b_to_work(self) -> Rearrangement:
        """B [columns, 16] to the work shape, one tile, one warp row; register = 4 (column / 8) + 2 k256 + word / 4."""
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


@dataclass(frozen=True)
class Config:
    """Sizes with which a kernel is compiled."""

    tile: Tile
    words: int
    """Number of words along K in a stage, 16 or 32."""
    stages: int = 4
    """Stages of shared memory, a power of two."""
    least_vector: int = 1
    """Least number of words in a copy: the addresses of more and shorter copies do not fit into registers."""

    @property
    def name(self) -> str:
        """Rows x columns x bits of a stage."""
        return f"{self.tile.rows}x{self.tile.columns}x{32 * self.words}"


_LARGE = Tile(m_tiles=4, n_pairs=4, warps_m=2, warps_n=4)  # 128 x 256, 64 x 64 a warp
_MEDIUM = Tile(m_tiles=2, n_pairs=4, warps_m=4, warps_n=2)  # 128 x 128, 32 x 64
_NARROW = Tile(m_tiles=2, n_pairs=2, warps_m=4, warps_n=2)  # 128 x 64, 32 x 32
_SMALL = Tile(m_tiles=2, n_pairs=2, warps_m=2, warps_n=2)  # 64 x 64, 32 x 32

_SHORT = (Config(_MEDIUM, 16), Config(_NARROW, 16), Config(_SMALL, 16))
_LONG = (Config(_MEDIUM, 32), Config(_NARROW, 32), Config(_SMALL, 32))

CONFIGS: dict[str, dict[int, tuple[Config, ...]]] = {
    "xnor_gemm": {
        80: (Config(_LARGE, 16, least_vector=2), *_LONG),
        89: (Config(_LARGE, 16, least_vector=2), *_SHORT),
        90: (Config(_LARGE, 32, least_vector=2), *_LONG),
    },
    # Registers hold the places of the windows and the borders' terms too: no largest tile, and short stages.
    "bconv2d": {80: _SHORT, 89: _SHORT, 90: _SHORT},
}
"""The configurations for an op and a compute capability, from the largest tile to the smallest."""

SAME_LIMITS = {86: 89, 87: 80}
"""Capabilities that are served like another one of ``CONFIGS``."""


def choose(configs: Sequence[Config], rows: int, columns: int, vector: int, processors: int) -> Config:
    """The largest tile that is not half empty and still gives every multiprocessor one; else the smallest tile."""
    for config in configs[:-1]:
        tiles = -(-rows // config.tile.rows) * -(-columns // config.tile.columns)
        if vector >= config.least_vector and 2 * columns > config.tile.columns and tiles >= processors:
            return config
    return configs[-1]


def config_for(op: str, device: torch.device, rows: int, columns: int, vector: int) -> Config:
    """``choose`` for an op of ``CONFIGS`` on a GPU. Raises ``ConfigError`` if that has no 1-bit tensor cores."""
    major, minor = torch.cuda.get_device_capability(device)
    target = SAME_LIMITS.get(10 * major + minor, 10 * major + minor)
    if target not in CONFIGS[op]:
        raise ConfigError(
            f"1-bit tensor cores exist in compute capabilities 8.0 to 9.0, {device} has {major}.{minor}; "
            "take the int8_dot kernels"
        )
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return choose(CONFIGS[op][target], rows, columns, vector, processors)


def configs_and_targets(op: str) -> dict[Config, tuple[int, ...]]:
    """Each configuration of an op with the compute capabilities that it serves; what the compile gate goes through."""
    tables = CONFIGS[op]
    configs = dict.fromkeys(config for configs in tables.values() for config in configs)
    return {config: tuple(target for target in tables if config in tables[target]) for config in configs}


def loop_instructions(config: Config, vector: int) -> dict[str, int]:
    """Machine instructions of one warp for one stage, which is one round of the main loop.

    A piece of assembly is four BMMA, an ldmatrix fills four registers, a copy moves ``vector`` words; one barrier.
    """
    tile, steps = config.tile, config.words // WORDS_PER_STEP
    copy = {1: "LDGSTS", 2: "LDGSTS.64", 4: "LDGSTS.128"}[vector]
    return {
        "BMMA.168256.AND.POPC": 4 * tile.m_tiles * tile.n_pairs * steps,
        "LDSM": 2 * (tile.m_tiles + tile.n_pairs) * steps,
        copy: (tile.rows + tile.columns) * config.words // vector // (LANES * tile.warps),
        "BAR": BARRIERS_OF_A_STAGE,
    }


_LANE_BASES = [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]]
_ASSEMBLY = gl.constexpr(mma_assembly())
_CONSTRAINTS = gl.constexpr(mma_constraints())


def _powers(size: int) -> list[int]:
    """The powers of two below ``size``, which is one itself: 1, 2, 4 and so on."""
    return [1 << bit for bit in range(size.bit_length() - 1)]


@gluon.constexpr_function
def work_layout(tile: Tile):
    """Blocked layout of the work shape: a thread holds all of its warp's tiles, 8 consecutive registers of each."""
    return gl.BlockedLayout(
        [tile.m_tiles, tile.n_pairs, 1, 1, 1, REGISTERS],
        [1, 1, 1, 1, LANES, 1],
        [1, 1, tile.warps_m, tile.warps_n, 1, 1],
        [5, 4, 3, 2, 1, 0],
    )


@gluon.constexpr_function
def operand_layout(bases, rows):
    """Linear layout of one step of an operand, [rows, 16 words]."""
    return gl.DistributedLinearLayout(bases["register"], bases["lane"], bases["warp"], [], [rows, WORDS_PER_STEP])


@gluon.constexpr_function
def result_layout(tile: Tile):
    """Linear layout of the result, [rows, columns]."""
    bases = tile.c_bases()
    return gl.DistributedLinearLayout(bases["register"], bases["lane"], bases["warp"], [], [tile.rows, tile.columns])


@gluon.constexpr_function
def shared_layout(words: int):
    """Rows of 16 or 32 words, their 16-byte chunks swizzled so that the 8 rows of an ldmatrix hit different banks."""
    return gl.SwizzledSharedLayout(4, 32 // words, words // 4, [1, 0])


@gluon.constexpr_function
def row_layout(length: int, vector: int, warps: int):
    """Layout of copies: the threads lie along a row of ``length`` elements first, with ``vector`` elements each."""
    across = min(LANES, length // vector)
    return gl.BlockedLayout([1, vector], [LANES // across, across], [warps, 1], [1, 0])


@gluon.constexpr_function
def store_layout(columns: int, kind, warps: int):
    """``row_layout`` of an output tile, 16 bytes a thread."""
    return row_layout(columns, 128 // kind.primitive_bitwidth, warps)


@gluon.jit
def rearrange(x, way: gl.constexpr, layout: gl.constexpr):
    """Follows one ``Rearrangement`` into ``layout``, which must not move a register."""
    x = x.reshape(way.split).permute(way.order).reshape(way.joined)
    return gl.convert_layout(x, layout, assert_trivial=True)


@gluon.jit
def program_tile(tiles_m, tiles_n, GROUP: gl.constexpr):
    """(row tile, column tile) of this program: GROUP row tiles walk down each column, so that both stay in L2."""
    program = gl.program_id(0)
    first = program // (GROUP * tiles_n) * GROUP
    place = program % (GROUP * tiles_n)
    height = gl.minimum(tiles_m - first, GROUP)
    return first + place % height, place // height


@gluon.jit
def multiply(a_stage, b_stage, sums, CONFIG: gl.constexpr):
    """Adds the popcounts of one stage, [rows, words] and [columns, words], to ``sums`` in the work shape."""
    tile: gl.constexpr = CONFIG.tile
    layout: gl.constexpr = work_layout(tile)
    a_layout: gl.constexpr = operand_layout(tile.a_bases(), tile.rows)
    b_layout: gl.constexpr = operand_layout(tile.b_bases(), tile.columns)
    for step in gl.static_range(CONFIG.words // 16):
        a = rearrange(a_stage.slice(16 * step, 16, dim=1).load(a_layout), tile.a_to_work(), layout)
        b = rearrange(b_stage.slice(16 * step, 16, dim=1).load(b_layout), tile.b_to_work(), layout)
        sums = gl.inline_asm_elementwise(_ASSEMBLY, _CONSTRAINTS, [a, b, sums], dtype=gl.int32, is_pure=True, pack=8)
    return sums


@gluon.jit
def as_matrix(sums, TILE: gl.constexpr):
    """Sums in the work shape to [rows, columns] in ``result_layout``."""
    return rearrange(sums, TILE.work_to_c(), result_layout(TILE))


@gluon.jit
def scaled(v, alpha_ptr, channel, columns, HAS_ALPHA: gl.constexpr, KIND: gl.constexpr):
    """Int32 ``v`` [rows, columns] as it is stored: int32, or float, times ``alpha`` of its channel, rounded once."""
    if HAS_ALPHA:
        alpha = gl.load(alpha_ptr + channel, mask=channel < columns, other=0.0)
        return (v.to(gl.float32) * alpha[None, :]).to(KIND)
    else:
        return v if KIND.is_int() else v.to(gl.float32).to(KIND)


@gluon.jit
def store(out_ptr, y, first_row, first_column, rows, columns, TILE: gl.constexpr):
    """Stores a tile of the row-major [rows, columns] output, 16 bytes a thread."""
    layout: gl.constexpr = store_layout(TILE.columns, y.dtype, TILE.warps)
    m = first_row + gl.arange(0, TILE.rows, layout=gl.SliceLayout(1, layout))
    n = first_column + gl.arange(0, TILE.columns, layout=gl.SliceLayout(0, layout))
    at = out_ptr + m.to(gl.int64)[:, None] * columns + n[None, :]
    gl.store(at, gl.convert_layout(y, layout), mask=(m < rows)[:, None] & (n < columns)[None, :])
