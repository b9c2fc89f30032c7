"""The contract of a device: files in, rows out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bnnedge.benchmarks.result import BenchmarkRow
from bnnedge.errors import BenchmarkError

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class ModelFile:
    """A file to be measured and the runtime to do it in."""

    label: str
    """What rows and tables call it."""
    data: bytes
    runtime: str
    """Name in RUNTIMES."""
    metadata: dict[str, Any]
    """What the file says of itself."""
    trained: bool = True
    """False if the weights are arbitrary, as in a float twin: it has a latency but no accuracy."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image: [C, H, W], or [C] for a network without convolutions."""
        return tuple(self.metadata["input_shape"])

    def check_input_shape(self) -> None:
        """Raise ``BenchmarkError`` if the metadata do not hold a shape."""
        shape = self.metadata.get("input_shape")
        if not isinstance(shape, list) or not shape or not all(type(n) is int and n > 0 for n in shape):
            raise BenchmarkError(f"{self.label}: expected input_shape [C, H, W] in its metadata, found {shape!r}")


@dataclass(frozen=True)
class BenchmarkInput:
    """The images of a benchmark."""

    name: str
    """``<data set> test`` or ``random normal``."""
    images: NDArray[np.float32]
    """[N, C, H, W], normalised as in training."""
    labels: NDArray[np.int64] | None = None
    """[N], or None if there is nothing to be right about."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """How to measure."""

    threads: int = 1
    warmup: int = 10
    """Runs of each file before the measured ones."""
    runs: int = 100
    """Measured runs of each file."""

    def __post_init__(self) -> None:
        for name, least in (("threads", 1), ("warmup", 0), ("runs", 1)):
            if getattr(self, name) < least:
                raise BenchmarkError(f"expected {name} >= {least}, found {getattr(self, name)}")


class Device(ABC):
    """A machine that can run exported files. What ``open`` made is closed by ``with``."""

    name: ClassVar[str]
    """In DEVICES."""

    @classmethod
    @abstractmethod
    def open(cls, address: str) -> Self:
        """The machine at ``address``: what follows ``NAME://`` on the command line, empty after the name alone.

        Raises ``BenchmarkError`` for an address that has no meaning, ``MissingDependencyError`` for a machine that
        cannot be reached or used.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what is held of the machine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def unavailable(self, runtime: str) -> str | None:
        """None if ``runtime`` (a name in RUNTIMES) can be used there; else what is missing and how to get it."""

    @abstractmethod
    def measure(
        self, files: Sequence[ModelFile], data: BenchmarkInput, plan: BenchmarkPlan, console: Console | None = None
    ) -> list[BenchmarkRow]:
        """One row for each of ``files``, in order; latencies are taken alternating between them.

        Raises a ``BnnedgeError`` before anything is timed if a file cannot be opened or gives nonsense.
        """
