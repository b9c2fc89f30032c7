"""``python -m bnnedge.benchmarks.networks``: a table of milliseconds, and a JSON line a row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from bnnedge.benchmarks.devices.device import BenchmarkSettings
from bnnedge.benchmarks.networks.measure import measure
from bnnedge.benchmarks.report.table import machine_line, short
from bnnedge.benchmarks.rows import BenchmarkRow, append_rows, check_appendable
from bnnedge.errors import BnnedgeError
from bnnedge.export.api import check_stem
from bnnedge.models import MODELS
from bnnedge.models.create import check_model_name
from bnnedge.models.network import Network
from bnnedge.models.user_code import is_user_code


def main(
    models: Annotated[
        list[str] | None, typer.Option(help="Model, several times for several; resnet18_1w1a if left out.")
    ] = None,
    image_sizes: Annotated[
        list[int] | None,
        typer.Option("--image-size", help="Pixels, several times for several; 32 and 224 if left out."),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=2, help="If left out 10 for small images, 1000 for those of ImageNet's size.")
    ] = None,
    stem: Annotated[str, typer.Option(help="fp32, or int8 for our files with an int8 stem.")] = "fp32",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    warmup: Annotated[int, typer.Option(min=0, help="Runs of each contender before the measured ones.")] = 5,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each contender.")] = 50,
    json: Annotated[Path | None, typer.Option(help="JSON lines file to add to.")] = None,
) -> None:
    """Time whole binary networks, untrained, against LCE and against their float32 and int8 twins, in one run.

    Contenders take turns, one image at a time. The output of each is compared with PyTorch's before it is timed.
    """
    console, notes = Console(), Console(stderr=True)
    settings = BenchmarkSettings(threads=threads, warmup=warmup, runs=runs)
    names = models or ["resnet18_1w1a"]
    try:
        check_stem(stem)
        for name in names:
            check_model_name(name)
        if json is not None:
            check_appendable(json)
        for name, size in product(names, image_sizes or [32, 224]):
            missing: list[str] = []
            classes = num_classes or _usual_classes(name, size)
            rows = measure(name, size, classes, settings, missing.append, notes, stem == "int8")
            if json is not None:
                append_rows(json, rows)
            console.print(table(name, rows, missing))
    except BnnedgeError as error:
        notes.print(f"[red]error:[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


def table(name: str, rows: Sequence[BenchmarkRow], missing: Sequence[str]) -> Table:
    """Milliseconds, and the multiple of the time of each of our files that a contender takes; 80 columns wide.

    The title names the network, so the rows call it ``binary``. ``missing``, what was left out and why, goes into the
    footnote.
    """
    size = rows[0].metadata["input_shape"][-1]
    threads = f"{rows[0].threads} thread{'s' * (rows[0].threads > 1)}"
    footnote = [machine_line(rows), *(f"without {reason}" for reason in missing)]
    result = Table(
        title=f"{name}, {size}x{size}, {threads}",
        caption="\n".join(footnote),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    ours = [row for row in rows if row.runtime.endswith("+bnnedge")]
    for column in ("file", "runtime"):  # a narrower window breaks these over several lines and keeps the numbers whole
        result.add_column(column, overflow="fold")
    ratios = [f"x\n{Path(row.file).suffix}" for row in ours]
    for column in ("p20\nms", "p50\nms", "p80\nms", *ratios, "size\nKiB"):
        result.add_column(column, justify="right", no_wrap=True)
    for i, row in enumerate(rows):
        rest = row.file.removeprefix(name)
        file = f"binary{rest}" if rest.startswith(".") else rest.removeprefix("_")
        times = [short(value) for value in (row.p20_ms, row.p50_ms, row.p80_ms)]
        multiples = [f"{row.p50_ms / own.p50_ms:.2f}" for own in ours]
        kib = f"{row.file_bytes / 1024:.0f}"
        result.add_row(file, row.runtime, *times, *multiples, kib, end_section=i == len(ours) - 1)
    return result


def _usual_classes(name: str, size: int) -> int:
    """The number of classes that the network is made for at this image size; 10 for a user's own."""
    if is_user_code(name):
        return 10
    record: Network = MODELS.load(name)
    return record.form((size, size)).classes


if __name__ == "__main__":
    typer.run(main)
