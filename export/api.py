"""Export: model -> graph -> passes -> file, verified before it is kept."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

import bnnedge
from bnnedge.errors import ExportError
from bnnedge.export.evaluate import scores_of
from bnnedge.export.graph import Graph
from bnnedge.export.passes import optimize
from bnnedge.export.passes.quantize_stem import Calibration
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.runtimes.runtime import VerifyingRuntime
from bnnedge.export.summary import format_bytes, graph_rows
from bnnedge.export.targets import TARGETS
from bnnedge.export.targets.target import LayerRow, Target
from bnnedge.export.trace import trace
from bnnedge.export.verify import Verification, verify
from bnnedge.files import write_atomically
from bnnedge.kernels.layout import BIT_LAYOUT_VERSION
from bnnedge.layers.deploy import deploy
from bnnedge.tasks.classification import Classification

VERIFY_IMAGES = 64
"""Random images that ``export`` verifies with when it is given none."""
STEMS = ("fp32", "int8")
"""Arithmetic of what stands before the first binary layer."""


@dataclass(frozen=True)
class Int8Stem:
    """What the int8 stem did to the network. None where it was not measured."""

    first_signs_changed: float | None
    """Share of the signs that enter the first binary layer, against the checkpoint's; in [0, 1]."""
    top1: float | None = None
    """Of the file, on the labelled images."""
    top1_fp32: float | None = None
    """Of the checkpoint."""
    top1_images: int = 0

    def __str__(self) -> str:
        parts = []
        if self.first_signs_changed is not None:
            parts.append(f"{self.first_signs_changed:.2%} of the first signs differ")
        if self.top1 is not None:
            parts.append(f"top-1 {self.top1:.2%} against {self.top1_fp32:.2%} in fp32 ({self.top1_images} images)")
        return f"stem int8: {'; '.join(parts) or 'its effect was not measured'}"


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
    stem: Int8Stem | None = None
    """None for a float stem."""

    def table(self) -> Table:
        """The layers: binary or float, why float, bytes; the total against float32."""
        ratio = self.float32_bytes / self.file_bytes
        caption = (
            f"{escape(str(self.path))}: {format_bytes(self.file_bytes)}, "
            f"{ratio:.1f}x smaller than the float32 weights ({format_bytes(self.float32_bytes)})"
        )
        table = Table(title="exported layers", caption=caption, caption_justify="left")
        for column in ("layer", "precision", "kind", "bytes", "why float"):
            table.add_column(column, justify="right" if column == "bytes" else "left", overflow="fold")
        for row in self.rows:
            binary = row.binary_weights > 0
            table.add_row(
                escape(row.name),
                "[green]binary[/]" if binary else "int8" if row.int8_weights else "float",
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
    stem: str = "fp32",
    calibration: NDArray[np.float32] | None = None,
    input_range: tuple[float, float] | None = None,
    labelled: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None,
) -> ExportReport:
    """Write ``model`` (trained, with binary layers) as a bit-packed file.

    Args:
        example_input: one batch [N, C, H, W] or [N, C]; fixes everything but N.
        path: the file to write, with the target's ending; replaced only once the new file is complete and verified.
        target: a name in TARGETS: ``onnx``, or ``lce`` for a TFLite file with Larq Compute Engine's operators.
        verify_images: real inputs to verify with, at least 64 of them; random ones if left out.
        check: run the file and compare it with the model (``bnnedge/export/verify.py``).
        metadata: further entries for the file's metadata.
        stem: ``int8`` writes the first convolution, its clip and its max-pool in 8-bit integers
            (``bnnedge/export/passes/quantize_stem.py``): faster, and not quite the same network.
        calibration: typical inputs that an int8 stem takes its ranges from; ``example_input`` if left out.
        input_range: smallest and largest value of any input, if known; else that of ``calibration``.
        labelled: images and labels; with an int8 stem the accuracies of file and model are measured on them.

    Raises ``ExportError`` naming a layer that cannot be exported, ``VerificationError`` naming the first layer that
    computes something else in the file; no file is left then.
    """
    writer: Target = TARGETS.load(target)()
    check_stem(stem)
    path = Path(path)
    _check_output(path, writer.suffix)
    example = example_input if len(example_input) > 1 else example_input.repeat(2, *[1] * (example_input.dim() - 1))
    int8 = None
    if stem == "int8":
        typical = example_input.cpu().float().numpy() if calibration is None else calibration
        int8 = Calibration(typical, input_range)
    graph = optimize(trace(model, example), int8)
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
    effect = None
    if stem == "int8":
        effect = _int8_effect(writer, model, data, verification, labelled)
        graph.metadata["stem"] = {"precision": stem, **asdict(effect)}
        data = writer.write(graph)
    write_atomically(path, data)
    return ExportReport(
        path=path,
        file_bytes=len(data),
        float32_bytes=4 * sum(r.binary_weights + r.int8_weights + r.float_params for r in graph_rows(graph)),
        rows=writer.describe(data),
        verification=verification,
        not_verified=not_verified,
        stem=effect,
    )


def _check_output(path: Path, suffix: str) -> None:
    if path.suffix.lower() != suffix:  # evaluate, bench and summary know a file by its ending
        raise ExportError(f"{path}: expected a file ending in {suffix}, found {path.suffix or 'no ending'}")
    if not path.parent.is_dir():
        raise ExportError(f"folder {path.parent} does not exist; create it first")
    if path.exists() and not path.is_file():
        raise ExportError(f"{path} exists and is no file that could be replaced; name another")


def check_stem(stem: str) -> None:
    """Raise ``ExportError`` for a stem that is not in STEMS."""
    if stem not in STEMS:
        raise ExportError(f"unknown stem {stem!r}; known: {', '.join(STEMS)}")


def _int8_effect(
    writer: Target,
    model: nn.Module,
    data: bytes,
    verification: Verification | None,
    labelled: tuple[NDArray[np.float32], NDArray[np.int64]] | None,
) -> Int8Stem:
    changed = verification.stem.share if verification and verification.stem else None
    runtimes = [RUNTIMES.load(name) for name in writer.runtimes]
    runtime = next((r for r in runtimes if r.unavailable() is None), None)
    if labelled is None or runtime is None:
        return Int8Stem(changed)
    deployed = deploy(model)

    @torch.no_grad()
    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        return deployed(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]

    task = Classification(1)
    of_file, of_checkpoint = (scores_of(r, task, *labelled)["top1"] for r in (runtime.open(data).run, run))
    return Int8Stem(changed, of_file, of_checkpoint, len(labelled[1]))


def _verify(
    writer: Target, model: nn.Module, graph: Graph, data: bytes, images: NDArray[np.float32]
) -> tuple[Verification | None, str]:
    judges: list[type[VerifyingRuntime]] = [RUNTIMES.load(name) for name in writer.judges]
    for judge in judges:
        if judge.unavailable() is None:
            return verify(deploy(model), graph, data, judge, images), ""
    return None, "; ".join(f"{judge.name}: {judge.unavailable()}" for judge in judges)
