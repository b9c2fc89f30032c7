"""The contract of a device: files go in and rows come out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bnnedge.benchmarks.rows import BenchmarkRow
from bnnedge.data.info import DatasetInfo
from bnnedge.errors import BenchmarkError
from bnnedge.export.description import FileDescription, describe_metadata
from bnnedge.progress import Report

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class ModelFile:
    """A file to be measured and the runtime to do it in."""

    label: str
    """The name of the file in rows and tables."""
    data: bytes
    runtime: str
    """Name in RUNTIMES."""
    metadata: dict[str, Any]
    """What the file says of itself."""
    trained: bool = True
    """False if the weights are arbitrary, as in a float twin, which has a latency but no scores."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: [C, H, W], or [C] for a network without convolutions."""
        return tuple(self.metadata["input_shape"])

    @property
    def description(self) -> FileDescription | None:
        """The task, the classes and the preprocessing record of the file; None if it has none.

        Raises ``ExportError`` if they are damaged.
        """
        return describe_metadata(self.metadata, self.label)

    def check_metadata(self) -> None:
        """Raise a ``BnnedgeError`` if the metadata does not hold a shape, or a damaged description."""
        shape = self.metadata.get("input_shape")
        if not isinstance(shape, list) or not shape or not all(type(n) is int and n > 0 for n in shape):
            raise BenchmarkError(f"{self.label}: expected input_shape [C, H, W] in its metadata, found {shape!r}")
        _ = self.description


@dataclass(frozen=True)
class BenchmarkInput:
    """What the files of a benchmark are given: stored pixels that each file normalises by its own record, or noise."""

    name: str
    """``<data set> test`` or ``random normal``."""
    images: NDArray[Any]
    """[N, C, H, W]: pixels as the data set stores them, of the files' common geometry, or noise as float32."""
    targets: NDArray[Any] | None = None
    """Targets [N, ...] as the data set stores them; None if there is nothing to compare outputs with."""
    info: DatasetInfo | None = None
    """The data set as it is described for files that say nothing of their own input; None for noise, which every file
    takes as it is."""

    def description_for(self, file: ModelFile) -> FileDescription | None:
        """What ``file`` says of its input and its task, or what is assumed for a file that does not say."""
        if (own := file.description) is not None or self.info is None:
            return own
        return FileDescription(self.info, self.info.make_task())

    def samples(self, file: ModelFile, rows: slice) -> tuple[NDArray[np.float32], NDArray[Any] | None]:
        """float32 inputs [B, ...] of ``file``, and targets of its task if there are any, of the samples ``rows``."""
        images = self.images[rows]
        targets = None if self.targets is None else self.targets[rows]
        described = self.description_for(file)
        if self.info is None or described is None:
            return images, targets
        inputs = described.info.preprocessing.normalize(images)
        return (inputs, None) if targets is None else described.task.samples(inputs, targets)


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
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
    """A machine that can run exported files. ``with`` closes what ``open`` opened."""

    name: ClassVar[str]
    """Name in DEVICES."""

    @classmethod
    @abstractmethod
    def open(cls, address: str) -> Self:
        """The machine at ``address``: what follows ``NAME://`` on the command line, empty after the name alone.

        Raises ``BenchmarkError`` for an address that has no meaning, ``MissingDependencyError`` for a machine that
        cannot be reached or used.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back whatever is held of the machine."""

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
        self,
        files: Sequence[ModelFile],
        data: BenchmarkInput,
        settings: BenchmarkSettings,
        report: Report | None = None,
    ) -> list[BenchmarkRow]:
        """One row for each of ``files``, in order; the files take turns and ``report`` is told how far they are.

        Raises a ``BnnedgeError`` before anything is timed if a file cannot be opened or its output is wrong.
        """
