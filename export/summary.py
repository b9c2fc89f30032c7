"""The layers of a network: parameters by bit width, bytes, and multiply-accumulates by precision."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.table import Table
from rich.text import Text
from torch import nn

from bnnedge.errors import BnnedgeError, BnnedgeWarning, MissingDependencyError, printable
from bnnedge.export.graph import Graph
from bnnedge.export.passes import optimize
from bnnedge.export.runtimes.choose import choose_runtime
from bnnedge.export.runtimes.isolated import IsolatedFile
from bnnedge.export.targets import TARGETS
from bnnedge.export.targets.target import ExportedFile, LayerRow, read_file
from bnnedge.export.trace import trace
from bnnedge.layers.deploy import deploy
from bnnedge.models import MODELS
from bnnedge.models.create import check_model_name, create_model
from bnnedge.models.network import Network
from bnnedge.models.user_code import is_user_code
from bnnedge.train.load import load_run


def graph_rows(graph: Graph) -> list[LayerRow]:
    """One row per node with weights. Bytes are what the values need: 1 bit, 1 byte or 4 bytes each."""
    rows = []
    for node in graph.nodes:
        weights = node.weights()
        if not weights:
            continue
        shape = graph.tensors[node.output].shape
        sizes = {bits: sum(each.values.size for each in weights if each.bits == bits) for bits in (1, 8, 32)}
        macs = {weights[0].bits: node.macs(graph.shapes(node), shape)}
        rows.append(
            LayerRow(
                name=node.name,
                kind=node.label,
                input_shape=graph.tensors[node.inputs[0]].shape[1:],
                output_shape=shape[1:],
                binary_weights=sizes[1],
                float_params=sizes[32],
                weight_bytes=math.ceil(sizes[1] / 8) + sizes[8] + 4 * sizes[32],
                binary_macs=macs.get(1, 0),
                float_macs=macs.get(32, 0),
                reason=node.reason,
                int8_weights=sizes[8],
                int8_macs=macs.get(8, 0),
            )
        )
    return rows


def summarize(
    source: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | tuple[int, ...] | None = None,
    trust_code: bool = False,
) -> list[LayerRow]:
    """The rows of an exported file (read from the file), a run folder or checkpoint, or a model by name.

    A model is shown in its deploy form, as ``ste`` trains it. Number of classes, channels and pixels (height and width,
    or one number for both) are for a model alone; None is what its record says, and for a model from a user's file 10
    classes, 3 channels and 32 pixels. ``trust_code`` is as for ``load_run``.
    """
    path = Path(source)
    if path.suffix in [TARGETS.load(name).suffix for name in TARGETS]:
        return file_rows(path)
    if path.suffix != ".py" and (path.exists() or ("/" in source and not is_user_code(source))):
        loaded = load_run(path, trust_code=trust_code)
        info = loaded.dataset
        return _model_rows(loaded.model, info.preprocessing.input_shape)
    check_model_name(source)
    usual = (10, 3, 32, 32)
    if not is_user_code(source):
        record: Network = MODELS.load(source)
        usual = (record.classes, record.channels, record.height, record.width)
    height, width = usual[2:]
    if image_size is not None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[-1])
    channels = in_channels or usual[1]
    model = create_model(source, num_classes=num_classes or usual[0], in_channels=channels, image_size=(height, width))
    return _model_rows(model, (channels, height, width))


def _model_rows(model: nn.Module, shape: tuple[int, ...]) -> list[LayerRow]:
    return graph_rows(optimize(trace(deploy(model), torch.zeros(2, *shape))))


def file_rows(path: Path) -> list[LayerRow]:
    """The rows of an exported file, read from the file itself in a process of its own.

    Raises ``ExportError`` for a file that is damaged. Warns of a file that its runtime cannot run, and of one without a
    digest.
    """
    file = read_file(path)
    sides = file.metadata.get("inputs")
    shapes = [side["shape"] for side in sides] if sides else [file.metadata.get("input_shape", [])]
    with IsolatedFile(str(path), file.data, 4 * sum(map(math.prod, shapes))) as isolated:
        rows = isolated.describe()
        if why := _why_not_run(isolated, file, shapes):
            warnings.warn(f"{why}", BnnedgeWarning, stacklevel=2)
    if not file.has_digest:
        warnings.warn(f"{path} has no digest, so damage to its weights is not noticed", BnnedgeWarning, stacklevel=2)
    return rows


def _why_not_run(isolated: IsolatedFile, file: ExportedFile, shapes: Sequence[Sequence[int]]) -> str:
    """Why the file cannot be run on zeros; empty if it can, or if no runtime is there to try it."""
    try:
        runtime = choose_runtime(file.target.runtimes, "auto", "the file")
    except MissingDependencyError:
        return ""
    try:
        session = isolated.load(runtime)
        zeros = [np.zeros((1, *shape), np.float32) for shape in shapes]
        session.run_all(dict(zip(session.input_names, zeros, strict=True)))
    except (BnnedgeError, ValueError) as error:
        return str(error)
    return ""


def format_bytes(count: float) -> str:
    """Bytes in B, KiB (1,024 B) or MiB (1,048,576 B)."""
    if count < 1024:
        return f"{count:.0f} B"
    return f"{count / 1024:.1f} KiB" if count < 2**20 else f"{count / 2**20:.2f} MiB"


def summary_table(rows: list[LayerRow], title: str) -> Table:
    """The table that ``bnnedge summary`` prints, two lines a row and 80 columns wide.

    MACs are per image and of the precision that the kind names. 8-bit weights are there if any row has some.
    """
    table = Table(
        title=Text(printable(title), style="table.title"),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption=_totals(rows),
        caption_justify="left",
    )
    table.add_column("layer\nkind", overflow="fold")
    counts = {
        "1-bit\nweights": [row.binary_weights for row in rows],
        "8-bit\nweights": [row.int8_weights for row in rows],
        "32-bit\nparams": [row.float_params for row in rows],
    }
    shown = {name: column for name, column in counts.items() if "8" not in name or any(column)}
    for name in ("input\noutput", *shown, "memory\nKiB", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    for i, row in enumerate(rows):
        table.add_row(
            Text.assemble(printable(row.name), "\n", (printable(row.kind), "dim")),
            "\n".join("x".join(map(str, shape)) for shape in (row.input_shape, row.output_shape)),
            *(f"{column[i]:,}" for column in shown.values()),
            f"{row.weight_bytes / 1024:,.1f}",
            f"{row.binary_macs + row.int8_macs + row.float_macs:,}",
        )
    return table


def _totals(rows: list[LayerRow]) -> str:
    binary, floats = sum(r.binary_weights for r in rows), sum(r.float_params for r in rows)
    int8, int8_macs = sum(r.int8_weights for r in rows), sum(r.int8_macs for r in rows)
    size, size32 = sum(r.weight_bytes for r in rows), 4 * (binary + int8 + floats)
    binary_macs, float_macs = sum(r.binary_macs for r in rows), sum(r.float_macs for r in rows)
    share = binary_macs / max(binary_macs + int8_macs + float_macs, 1)
    return (
        f"{binary:,} 1-bit weights{f' + {int8:,} 8-bit weights' if int8 else ''} + {floats:,} 32-bit parameters = "
        f"{format_bytes(size)}, {size32 / max(size, 1):.1f}x smaller than all in float32 ({format_bytes(size32)})\n"
        f"{binary_macs:,} binary + {f'{int8_macs:,} int8 + ' if int8 else ''}{float_macs:,} float MACs per image "
        f"({share:.1%} binary)"
    )
