"""Export: model -> graph -> passes -> file, verified before it is kept."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

import bnnedge
from bnnedge.errors import BnnedgeWarning, ExportError, printable
from bnnedge.export.constant_signs import constant_signs
from bnnedge.export.graph import Graph
from bnnedge.export.layer_rows import graph_rows
from bnnedge.export.passes import optimize
from bnnedge.export.passes.quantize_stem import Calibration
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.runtimes.runtime import Images, VerifyingRuntime
from bnnedge.export.stem_effect import Int8Stem, measure_effect
from bnnedge.export.summary import format_bytes
from bnnedge.export.targets import TARGETS
from bnnedge.export.targets.target import LayerRow, Target
from bnnedge.export.trace import trace
from bnnedge.export.trace.signature import named_inputs
from bnnedge.export.verify import Agreement, Verification, same_arg_max, verify
from bnnedge.export.verify_deploy import verify_deploy_form
from bnnedge.files import write_output
from bnnedge.kernels.layout import BIT_LAYOUT_VERSION
from bnnedge.layers.constant_signs import constant_signs_text
from bnnedge.layers.deploy import deploy, unwrapped
from bnnedge.tasks.task import Task

VERIFY_IMAGES = 64
"""Random images that ``export`` verifies with when it is given none."""
STEMS = ("fp32", "int8")
"""The arithmetic of the stem, which is the part of the network before the first binary layer."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it was checked."""

    path: Path
    file_bytes: int
    float32_bytes: int
    """Size of all weights and parameters in float32."""
    rows: list[LayerRow]
    """The layers as read back from the file, with the reason why a layer is not binary."""
    verification: Verification | None
    not_verified: str = ""
    """Why there is no verification."""
    stem: Int8Stem | None = None
    """The effect of an int8 stem; None for a float stem."""
    constant_signs: Mapping[str, int] = field(default_factory=dict)
    """The sign of each binary layer whose input has no other, by the layer's name; such a layer learns nothing."""

    def table(self) -> Table:
        """A row for every layer with its precision, its bytes and why it is float, and the total against float32."""
        ratio = self.float32_bytes / self.file_bytes
        caption = (
            f"{printable(str(self.path))}: {format_bytes(self.file_bytes)}, "
            f"{ratio:.1f}x smaller than the float32 weights ({format_bytes(self.float32_bytes)})"
        )
        table = Table(title="exported layers", caption=Text(caption, style="table.caption"), caption_justify="left")
        for column in ("layer", "precision", "kind", "bytes", "note"):
            table.add_column(column, justify="right" if column == "bytes" else "left", overflow="fold")
        for row in self.rows:
            binary = row.binary_weights > 0
            table.add_row(
                Text(printable(row.name)),
                Text("binary", "green") if binary else "int8" if row.int8_weights else "float",
                Text(printable(row.kind)),
                f"{row.weight_bytes:,}",
                self._note(row),
            )
        return table

    def _note(self, row: LayerRow) -> Text:
        """Why a layer is float, or what is wrong with a binary one."""
        sign = self.constant_signs.get(row.name)
        if sign is not None:
            return Text(f"all signs of its input are {sign:+d}", "yellow")
        return Text("" if row.binary_weights else printable(row.reason))


def export(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    target: str = "onnx",
    *,
    verify_images: Images | tuple[Images, ...] | Mapping[str, Images] | None = None,
    check: bool = True,
    task: Task | None = None,
    agreement: Agreement | Mapping[str, Agreement] | None = None,
    metadata: dict[str, Any] | None = None,
    stem: str = "fp32",
    calibration: NDArray[np.float32] | None = None,
    input_range: tuple[float, float] | None = None,
    labelled: tuple[Images, NDArray[Any]] | None = None,
) -> ExportReport:
    """Write ``model`` (trained, with binary layers) as a bit-packed file.

    The model returns a tensor, or a tuple, list or dict of tensors; the keys of a dict become the names of the file's
    outputs, those of a tuple or list are ``output_0``, ``output_1``, ...

    Args:
        example_inputs: one batch [N, C, H, W] or [N, C]; fixes everything but N. Several inputs are a tuple in the
            order of forward's arguments or a dict by their names, which become the names of the file's inputs.
        path: the file to write, with the target's ending; replaced only once the new file is complete and verified.
        target: a name in TARGETS: ``onnx``, or ``lce`` for a TFLite file with Larq Compute Engine's operators.
        verify_images: real inputs to verify with, at least 64 of them, in the form of ``example_inputs``; random ones
            if left out.
        check: run the file and compare every output with the model's (``bnnedge/export/verify.py``).
        task: what the network was trained for (``bnnedge/tasks``), if it is one of these tasks.
        agreement: how often file and checkpoint give the same answer, for every output or one for each by its name:
            ``agreement(found, expected)`` in [0, 1] for arrays [N, ...]. By default the task's; without a task the
            share with the same arg-max.
        metadata: further entries for the file's metadata.
        stem: ``int8`` writes the first convolution, its clip and its max-pool in 8-bit integers
            (``bnnedge/export/passes/quantize_stem.py``): faster, and not quite the same network.
        calibration: typical inputs that an int8 stem takes its ranges from; ``example_inputs`` if left out.
        input_range: smallest and largest value of any input, if known; else that of ``calibration``.
        labelled: inputs and targets on which an int8 stem's effect on the task's scores is measured.

    Raises ``ExportError`` naming a layer that cannot be exported, ``VerificationError`` naming the first layer that
    computes something else in the file; no file is left then.
    """
    writer: Target = TARGETS.load(target)()
    check_stem(stem)
    path = Path(path)
    _check_output(path, writer.suffix)
    model = unwrapped(model)
    deployed = deploy(model)
    inputs = named_inputs(deployed, example_inputs)
    int8 = _calibration(inputs, calibration, input_range) if stem == "int8" else None
    examples = {name: _of_two(example) for name, example in inputs.items()}
    named = isinstance(example_inputs, Mapping)
    traced = trace(deployed, examples if named else tuple(examples.values()))
    proved = constant_signs(traced)
    graph = optimize(traced, int8)
    graph.metadata = _described(graph, type(model).__name__, metadata)
    data = writer.write(graph)
    verification, not_verified = None, "verification was turned off"
    if check:
        verify_images = _noise(inputs) if verify_images is None else verify_images
        agreement = agreement or (task.agreement if task else same_arg_max)
        verify_deploy_form(model, named_inputs(deployed, verify_images))
        verification, not_verified = _verify(writer, deployed, graph, data, verify_images, agreement)
    effect = None
    if stem == "int8":
        changed = verification.stem.share if verification and verification.stem else None
        effect = measure_effect(writer, deployed, data, changed, task, labelled)
        graph.metadata["stem"] = effect.to_metadata()
        data = writer.write(graph)
    write_output(path, data)
    seen = verification.constant_signs if verification else {}
    for layer, sign in {**seen, **proved}.items():
        where = (
            "" if layer in proved or not verification else f"on the {verification.images} images of the verification"
        )
        warnings.warn(constant_signs_text(layer, sign, where), BnnedgeWarning, stacklevel=2)
    return ExportReport(
        path=path,
        file_bytes=len(data),
        float32_bytes=4 * sum(r.binary_weights + r.int8_weights + r.float_params for r in graph_rows(graph)),
        rows=writer.describe(data),
        verification=verification,
        not_verified=not_verified,
        stem=effect,
        constant_signs={**seen, **proved},
    )


def _of_two(example: Tensor) -> Tensor:
    """``example`` with at least two samples, since PyTorch takes a batch of 1 for a fixed size."""
    return example if len(example) > 1 else example.repeat(2, *[1] * (example.dim() - 1))


def _noise(inputs: Mapping[str, Tensor]) -> tuple[Images, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(VERIFY_IMAGES, *example.shape[1:]) for example in inputs.values()]
    return tuple(torch.randn(shape, generator=generator).numpy() for shape in shapes)


def _calibration(
    inputs: Mapping[str, Tensor], calibration: Images | None, input_range: tuple[float, float] | None
) -> Calibration:
    if len(inputs) != 1:
        raise ExportError(f"no int8 stem: the model has the inputs {', '.join(inputs)}; one of one input can have it")
    (example,) = inputs.values()
    return Calibration(example.cpu().float().numpy() if calibration is None else calibration, input_range)


def _described(graph: Graph, model: str, further: dict[str, Any] | None) -> dict[str, Any]:
    """The metadata of a file; ``input_shape`` is there for a network of one input."""
    sides = {
        side: [{"name": name, "shape": list(graph.tensors[name].shape[1:])} for name in names]
        for side, names in (("inputs", graph.inputs), ("outputs", graph.outputs))
    }
    shape = {"input_shape": sides["inputs"][0]["shape"]} if len(graph.inputs) == 1 else {}
    return {
        "producer": "bnnedge",
        "bnnedge_version": bnnedge.__version__,
        "bit_layout_version": BIT_LAYOUT_VERSION,
        "model": model,
        **shape,
        **sides,
        **(further or {}),
    }


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


def _verify(
    writer: Target,
    deployed: nn.Module,
    graph: Graph,
    data: bytes,
    images: Images | tuple[Images, ...] | Mapping[str, Images],
    agreement: Agreement | Mapping[str, Agreement],
) -> tuple[Verification | None, str]:
    judges: list[type[VerifyingRuntime]] = [RUNTIMES.load(name) for name in writer.judges]
    for judge in judges:
        if judge.unavailable() is None:
            return verify(deployed, graph, data, judge, images, agreement), ""
    return None, "; ".join(f"{judge.name}: {judge.unavailable()}" for judge in judges)
