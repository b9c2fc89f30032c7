"""The contract of an engine: something that runs a convolution, ours or others', called in its own best way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bnnedge import __version__
from bnnedge.benchmarks.ops.shapes import ConvShape

CHAIN = 4
"""Convolutions in one call of an engine that can chain them."""


@dataclass(frozen=True)
class Prepared:
    """A convolution whose data is in place: ``run`` does it ``calls`` times.

    Where the shape allows it, others run a chain of convolutions in one call. That spreads the cost of starting and of
    changing layouts over several convolutions. Ours starts again for each one, from floats to floats.
    """

    run: Callable[[], object]
    calls: int


class Engine(ABC):
    """One line of the table for each shape."""

    name: str
    package: ClassVar[str] = ""
    """Name of the Python package whose version is shown; empty for bnnedge itself."""
    native_kernel: str | None = None
    """The kernel of bnnedge's C++ library that it runs; None for a peer."""

    def unavailable(self) -> str | None:
        """None if it can run here, else the reason why not."""
        return None

    def version(self) -> str:
        return metadata.version(self.package) if self.package else __version__

    def check(self, shape: ConvShape) -> None:
        """Raise ``BenchmarkError`` if the result on ``shape`` is wrong. Peers are not checked."""
        return

    @abstractmethod
    def prepare(self, shape: ConvShape, threads: int) -> Prepared:
        """Everything that is to be done before the convolution of ``shape`` can run on ``threads`` threads."""


def signs(shape: ConvShape, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """An input [H, W, C] of noise and weights [O, kh, kw, C] in {-1, +1}."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((shape.height, shape.width, shape.channels)).astype(np.float32)
    w = rng.choice(np.array([-1, 1], np.int8), (shape.out_channels, shape.kernel, shape.kernel, shape.channels))
    return x, w
