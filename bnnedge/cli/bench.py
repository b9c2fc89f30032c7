"""``bnnedge bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnnedge.cli.registries import complete_names, complete_words
from bnnedge.cli.trust import TrustCode


def bench(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Exported files.")],
    runtime: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What runs the files: auto, or one of `bnnedge list runtimes`.",
            autocompletion=complete_names("runtimes", "auto"),
        ),
    ] = "auto",
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            help="Where to measure: local, or ssh://[USER@]HOST[:PORT][/PYTHON].",
            autocompletion=complete_words(("local", "ssh://")),
        ),
    ] = "local",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of the runtime.")] = 1,
    warmup: Annotated[int, typer.Option(min=0, help="Runs of each file before any is timed.")] = 10,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each file, in turn with the others'.")] = 100,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Data set for the inputs and the scores, or `random`. [default: the file's own]",
            autocompletion=complete_names("datasets", "random"),
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Test images for the scores. [default: all, or as many as 1 GiB holds]")
    ] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Add the first file's float32 twin.")] = False,
    data_root: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the data sets. [default: $BNNEDGE_DATA]")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Append one JSON line per file to this file.")
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Measure latency, scores, memory and size of exported files, side by side."""
    from rich.console import Console

    from bnnedge.benchmarks.bench import bench as measure
    from bnnedge.benchmarks.report.table import comparison_table

    rows = measure(
        files,
        runtime=runtime,
        threads=threads,
        warmup=warmup,
        runs=runs,
        data=data,
        baseline=baseline,
        json_path=json_file,
        device=device,
        data_root=data_root,
        images=images,
        trust_code=trust_code,
    )
    Console().print(comparison_table(rows))
