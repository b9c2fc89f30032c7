"""The contract of a file format: it writes a graph as bytes and reads what a file says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from bnnedge.errors import ExportError, printable
from bnnedge.export.graph import Graph
from bnnedge.export.passes import Pass
from bnnedge.export.targets import TARGETS
from bnnedge.export.targets.digest import DIGEST_KEY
from bnnedge.files import read_within

MOST_FILE_BYTES = 2**31
"""Bytes of a file; neither format can hold more."""


@dataclass(frozen=True)
class LayerRow:
    """One operation that holds weights or does multiply-accumulates, as read from a model or a file."""

    name: str
    kind: str
    """The name of the operation in tables: ``binary conv 3x3``, ``conv 3x3``, ``linear``, ``affine``, ..."""
    input_shape: tuple[int, ...]
    """The shape without the batch dimension, [C, H, W] or [C]."""
    output_shape: tuple[int, ...]
    binary_weights: int
    """Number of 1-bit weights."""
    float_params: int
    """Number of float32 parameters."""
    weight_bytes: int
    """Bytes that weights and parameters take in the file (packing included)."""
    binary_macs: int
    """Multiply-accumulates on bits for one image."""
    float_macs: int
    reason: str = ""
    """Why the layer's weights are not binary; empty for a binary layer and for one without a reason."""
    int8_weights: int = 0
    """Number of 8-bit weights."""
    int8_macs: int = 0


class Target(ABC):
    """A file format that bnnedge writes."""

    suffix: ClassVar[str]
    """File name ending, with the dot."""
    layout: ClassVar[Literal["NCHW", "NHWC"]]
    """The order of the axes in which the file takes images."""
    runtimes: ClassVar[tuple[str, ...]]
    """Names in RUNTIMES that can run the file, fastest first."""
    judges: ClassVar[tuple[str, ...]]
    """The runtimes that ``export`` verifies the file in, first choice first. Their kernels are not our own."""

    passes: ClassVar[tuple[Pass, ...]] = ()
    """Rewrites that this format alone wants, in their order, behind those of ``bnnedge/export/passes``."""

    def write(self, graph: Graph) -> bytes:
        """The whole file, the same bytes for the same graph, after ``passes``.

        Raises ``ExportError`` naming the layer that the format cannot hold.
        """
        graph = graph.validate()
        for rewrite in self.passes:
            graph = rewrite(graph)
        return self.encode(graph.validate())

    @abstractmethod
    def encode(self, graph: Graph) -> bytes:
        """The bytes of a checked graph, each node in its form."""

    @abstractmethod
    def read_metadata(self, data: bytes) -> dict[str, Any]:
        """The metadata that ``write`` stored. Raises ``ExportError`` if the bytes are not such a file."""

    @abstractmethod
    def describe(self, data: bytes) -> list[LayerRow]:
        """The rows of ``bnnedge summary FILE``, read from the file itself."""


def target_of(path: Path) -> Target:
    """The target that a file name's ending belongs to. Raises ``ExportError`` if it is none's."""
    targets: list[Target] = [TARGETS.load(name)() for name in TARGETS]
    for target in targets:
        if path.suffix.lower() == target.suffix:
            return target
    endings = " or ".join(target.suffix for target in targets)
    found = printable(path.suffix) or "no ending"
    raise ExportError(f"{printable(str(path))}: expected a file ending in {endings}, found {found}")


@dataclass(frozen=True)
class ExportedFile:
    """A file of one of the targets, read and found whole."""

    target: Target
    data: bytes
    metadata: dict[str, Any]

    @property
    def has_digest(self) -> bool:
        """Whether damage to any byte of the file is noticed; files of older versions and other programs have none."""
        return DIGEST_KEY in self.metadata


def read_file(path: Path) -> ExportedFile:
    """Read an exported file. Raises ``ExportError``, naming it, if it is missing, damaged or not as its digest says."""
    target = target_of(path)
    if not path.exists():
        raise ExportError(f"{printable(str(path))} does not exist; `bnnedge export RUN` writes such a file")
    data = read_within(path, MOST_FILE_BYTES, ExportError)
    try:
        return ExportedFile(target, data, target.read_metadata(data))
    except ExportError as error:
        raise ExportError(f"{printable(str(path))}: {error}") from error
