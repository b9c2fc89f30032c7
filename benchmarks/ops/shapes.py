"""Layer shapes of networks, from the tables in ``benchmarks/shapes``."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files

from bnnedge.errors import BenchmarkError

_FOLDER = files("bnnedge.benchmarks").joinpath("shapes")


@dataclass(frozen=True)
class ConvShape:
    """One convolution of a single image with a square kernel; the network has ``count`` of them."""

    name: str
    height: int
    width: int
    channels: int
    out_channels: int
    kernel: int
    stride: int
    padding: int
    count: int

    @property
    def out_height(self) -> int:
        return (self.height + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def out_width(self) -> int:
        return (self.width + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one convolution, those with padding included."""
        return self.out_height * self.out_width * self.out_channels * self.kernel**2 * self.channels

    @property
    def chains(self) -> bool:
        """Whether the output can be the input of the same convolution."""
        return self.channels == self.out_channels and (self.height, self.width) == (self.out_height, self.out_width)


def networks() -> list[str]:
    """Names of the tables."""
    return sorted(entry.name.removesuffix(".csv") for entry in _FOLDER.iterdir() if entry.name.endswith(".csv"))


def read_shapes(network: str) -> list[ConvShape]:
    """The rows of one table. Raises ``BenchmarkError`` for an unknown name or a damaged table."""
    if network not in networks():
        raise BenchmarkError(f"unknown network {network!r}; known: {', '.join(networks())}")
    rows = list(csv.DictReader(_FOLDER.joinpath(f"{network}.csv").read_text(encoding="utf-8").splitlines()))
    try:
        return [ConvShape(row.pop("name"), **{key: int(value) for key, value in row.items()}) for row in rows]
    except (TypeError, ValueError, KeyError) as error:
        raise BenchmarkError(f"{network}.csv: expected a name and eight integers a row: {error}") from error
