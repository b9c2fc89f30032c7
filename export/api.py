"""Export: model -> graph -> passes -> file, verified before it is kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor, nn

import bnnedge
from bnnedge.errors import ExportError
from bnnedge.export.graph import Graph
from bnnedge.export.passes import optimize
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.runtimes.runtime import VerifyingRuntime
from bnnedge.export.summary import format_bytes, graph_rows
from bnnedge.export.targets import TARGETS
from bnnedge.export.targets.target import LayerRow, Target
from bnnedge.export.trace import trace
from bnnedge.export.verify import Verification, verify
from bnnedge.kernels.layout import BIT_LAYOUT_VERSION
from bnnedge.layers.deploy import deploy
from bnnedge.train.checkpoint import write_atomically

VERIFY_IMAGES = 64
"""Random images that ``export`` verifies with when it is given none."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it was checked."""

    path: Path
    file_bytes: int
    float32_bytes: int
    """Size of all weights and parameters in float32."""
    rows: list[LayerRow]
    """As read back from the file, with the reason why a layer is not binary."""
    verification: Verification | None
    not_verified: str = ""
    """Why there is no verification."""

    def table(self) -> Table:
        """The layers: binary or float, why float, bytes; the total against float32."""
        ratio = self.float32_bytes / self.file_bytes
        caption = (
            f"{self.path}: {format_bytes(self.file_bytes)}, "
            f"{ratio:.1f}x smaller than the float32 weights ({format_bytes(self.float32_bytes)})"
        )
        table = Table(title="exported layers", caption=caption, caption_justify="left")
        for column in ("layer", "precision", "kind", "bytes", "why float"):
            table.add_column(column, justify="right" if column == "bytes" else "left", overflow="fold")
        for row in self.rows:
            binary = row.binary_weights > 0
            table.add_row(
                row.name,
                "[green]binary[/]" if binary else "float",
                row.kind,
                f"{row.weight_bytes:,}",
                "" if binary else row.reason,
            )
        return table


def export(
    model: nn.Module,
    example_input: Tensor,
    path: str | os.PathLike[str],
    target: str = "onnx",
    *,
    verify_images: NDArray[np.float32] | None = None,
    check: bool = True,
    metadata: dict[str, Any] | None = None,
) -> ExportReport:
    """Write ``model`` (trained, with binary layers) as a bit-packed file.

    Args:
        example_input: one batch [N, C, H, W] or [N, C]; fixes everything but N.
        path: the file to write; replaced only once the new file is complete and verified.
        target: a name in TARGETS: ``onnx``, or ``lce`` for a TFLite file with Larq Compute Engine's operators.
        verify_images: real inputs to verify with, at least 64 of them; random ones if left out.
        check: run the file and compare it with the model (``bnnedge/export/verify.py``).
        metadata: further entries for the file's metadata.

    Raises ``ExportError`` naming a layer that cannot be exported, ``VerificationError`` naming the first layer that
    computes something else in the file; no file is left then.
    """
    writer: Target = TARGETS.load(target)()
    path = Path(path)
    if not path.parent.is_dir():
        raise ExportError(f"folder {path.parent} does not exist; create it first")
    example = example_input if len(example_input) > 1 else example_input.repeat(2, *[1] * (example_input.dim() - 1))
    graph = optimize(trace(model, example))
    graph.metadata = {
        "producer": "bnnedge",
        "bnnedge_version": bnnedge.__version__,
        "bit_layout_version": BIT_LAYOUT_VERSION,
        "model": type(model).__name__,
        "input_shape": list(example_input.shape[1:]),
        **(metadata or {}),
    }
    data = writer.write(graph)
    verification, not_verified = None, "verification was turned off"
    if check:
        if verify_images is None:
            generator = torch.Generator().manual_seed(0)
            verify_images = torch.randn(VERIFY_IMAGES, *example_input.shape[1:], generator=generator).numpy()
        verification, not_verified = _verify(writer, model, graph, data, verify_images)
    write_atomically(path, data)
    return ExportReport(
        path=path,
        file_bytes=len(data),
        float32_bytes=4 * sum(r.binary_weights + r.float_params for r in graph_rows(graph)),
        rows=writer.describe(data),
        verification=verification,
        not_verified=not_verified,
    )


def _verify(
    writer: Target, model: nn.Module, graph: Graph, data: bytes, images: NDArray[np.float32]
) -> tuple[Verification | None, str]:
    judges: list[type[VerifyingRuntime]] = [RUNTIMES.load(name) for name in writer.judges]
    for judge in judges:
        if judge.unavailable() is None:
            return verify(deploy(model), graph, data, judge, images), ""
    return None, "; ".join(f"{judge.name}: {judge.unavailable()}" for judge in judges)
