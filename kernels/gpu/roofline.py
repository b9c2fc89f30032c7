"""Modelled time of the GPU ops: the least that a GPU's memory, L2 cache and arithmetic allow, whichever is longest.

    time = max(bytes / memory bandwidth, L2 bytes / L2 bandwidth, operations / peak rate)

A multiply and an add are two operations, so a product of [M, K] and [K, N] has ``2 M N K``. Memory moves each operand
and the output once; L2 feeds each tile of the output with its rows and columns of the operands. Launches and waits are
left out, so a measured time is above the model; far above it, the kernel has a fault or the model a gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bnnedge.errors import ConfigError
from bnnedge.kernels.geometry import BConv2dGeometry
from bnnedge.kernels.gpu.bmma import Tile
from bnnedge.kernels.layout import words_for

Arithmetic = Literal["binary", "int8", "bf16"]
Bound = Literal["memory", "L2", "arithmetic"]


@dataclass(frozen=True)
class Gpu:
    """What the model needs of a GPU. Rates are operations a clock and multiprocessor."""

    name: str
    processors: int
    clock_hz: float
    """The clock that the GPU keeps under load."""
    memory_bytes_per_s: float
    """What a large copy reaches, reads and writes together."""
    l2_bytes_per_clock: float
    """What all multiprocessors together read from the L2 cache."""
    rates: dict[Arithmetic, float]

    def operations_per_s(self, arithmetic: Arithmetic) -> float:
        """Peak rate of all multiprocessors together."""
        return self.rates[arithmetic] * self.processors * self.clock_hz


# mma.sync b1 on Hopper: 0.54 instructions of 65,536 operations a clock, published for GH200; L2: for an H800.
_HOPPER: dict[Arithmetic, float] = {"binary": 35_400, "int8": 8_192, "bf16": 4_096}
# Peak of the A100's data sheet (4,992 binary TOPS); its L2 rate is that of the architecture's white paper.
_AMPERE: dict[Arithmetic, float] = {"binary": 32_768, "int8": 4_096, "bf16": 2_048}

GPUS = (
    Gpu("H200", 132, 1.755e9, 4.3e12, 3_900, _HOPPER),
    Gpu("H100", 132, 1.755e9, 3.0e12, 3_900, _HOPPER),
    Gpu("A100", 108, 1.41e9, 1.8e12, 5_120, _AMPERE),
)
"""Memory bandwidths are about 90 % of the data sheets' (4.8, 3.35 and 2.04 TB/s)."""


@dataclass(frozen=True)
class Modelled:
    """A modelled time and what sets it."""

    seconds: float
    bound: Bound
    operations: int

    @property
    def tera_operations_per_s(self) -> float:
        """``operations / seconds`` in units of 10^12."""
        return self.operations / self.seconds / 1e12


def gpu_named(device_name: str) -> Gpu:
    """The entry of ``GPUS`` whose name occurs in what ``torch.cuda.get_device_name`` says, or ``ConfigError``."""
    for gpu in GPUS:
        if gpu.name in device_name:
            return gpu
    known = ", ".join(gpu.name for gpu in GPUS)
    raise ConfigError(f"no roofline for {device_name!r}; known are {known}; add its rates to GPUS")


def gemm(gpu: Gpu, m: int, n: int, k: int, tile: Tile, out_bytes: int, arithmetic: Arithmetic = "binary") -> Modelled:
    """Product of [m, k] and [n, k]; ``out_bytes`` of one output element. Binary operands take a bit an element, others
    one or two bytes."""
    row_bytes = _row_bytes(k, arithmetic)
    moved = (m + n) * row_bytes + m * n * out_bytes
    return _longest(gpu, 2 * m * n * k, moved, _fed_by_l2(m, n, row_bytes, tile), arithmetic)


def bconv2d(gpu: Gpu, geometry: BConv2dGeometry, tile: Tile, out_bytes: int) -> Modelled:
    """Binary convolution of packed words, counts included; memory gives the image once, L2 its windows."""
    g = geometry
    pixels, taps = g.batch * g.out_height * g.out_width, g.kernel[0] * g.kernel[1]
    pixel_bytes = 4 * words_for(g.channels)
    read = g.batch * g.height * g.width * (pixel_bytes + 4) + g.out_channels * taps * (pixel_bytes + 4)
    written = pixels * g.out_channels * out_bytes
    l2 = _fed_by_l2(pixels, g.out_channels, taps * pixel_bytes, tile)
    return _longest(gpu, 2 * pixels * g.out_channels * taps * g.channels, read + written, l2, "binary")


def pack(gpu: Gpu, moved: int) -> Modelled:
    """Packing, alone or in the tail of a block, that reads and writes ``moved`` bytes: no arithmetic that counts."""
    return Modelled(moved / gpu.memory_bytes_per_s, "memory", 0)


def pack_bytes(elements: int, channels: int, value_bytes: int) -> int:
    """Bytes that ``sign_pack`` reads and writes: values; signs, clip mask and counts."""
    return elements * value_bytes + elements // channels * (2 * 4 * words_for(channels) + 4)


def tail_bytes(elements: int, channels: int, value_bytes: int) -> tuple[int, int]:
    """Bytes of a residual block's tail, forward and backward, with the sums that the convolution before it has made.

    Forward reads y and the residual and writes z, signs, mask and counts. Backward reads z's gradient, mask and y for
    the sums and writes the residual's gradient, then reads that and y and writes y's.
    """
    pixels, words_bytes = elements // channels, 4 * words_for(channels)
    return 3 * elements * value_bytes + pixels * (
        2 * words_bytes + 4
    ), 6 * elements * value_bytes + pixels * words_bytes


def _row_bytes(k: int, arithmetic: Arithmetic) -> int:
    return {"binary": 4 * words_for(k), "int8": k, "bf16": 2 * k}[arithmetic]


def _fed_by_l2(rows: int, columns: int, row_bytes: int, tile: Tile) -> int:
    tiles = -(-rows // tile.rows) * -(-columns // tile.columns)
    return tiles * (tile.rows + tile.columns) * row_bytes


def _longest(gpu: Gpu, operations: int, moved: int, fed: int, arithmetic: Arithmetic) -> Modelled:
    times: dict[Bound, float] = {
        "memory": moved / gpu.memory_bytes_per_s,
        "L2": fed / (gpu.l2_bytes_per_clock * gpu.clock_hz),
        "arithmetic": operations / gpu.operations_per_s(arithmetic),
    }
    bound = max(times, key=lambda name: times[name])
    return Modelled(times[bound], bound, operations)
