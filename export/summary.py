"""The layers of a network: parameters by bit width, bytes, and multiply-accumulates by precision."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from bnnedge.errors import BnnedgeError, BnnedgeWarning, MissingDependencyError, printable
from bnnedge.export.runtimes.choose import choose_runtime
from bnnedge.export.runtimes.isolated import IsolatedFile
from bnnedge.export.targets import TARGETS
from bnnedge.export.targets.target import ExportedFile, LayerRow, read_file


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
    # Imported here: it brings torch, which the table of a file can do without.
    from bnnedge.export.layer_rows import network_rows

    return network_rows(
        source, num_classes=num_classes, in_channels=in_channels, image_size=image_size, trust_code=trust_code
    )


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
