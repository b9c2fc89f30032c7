"""``bnnedge report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnnedge.errors import ConfigError, printable


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    rows: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows of `bench --json`. [default: RUN/bench.jsonl]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Picture. [default: RUN/report.png]")
    ] = None,
) -> None:
    """Draw a run's curves of scores and loss and its files' latency and size, as one PNG."""
    from bnnedge.benchmarks.report.picture import draw_report
    from bnnedge.benchmarks.rows import read_rows
    from bnnedge.train.run_folder import RunFolder

    RunFolder(run).check_exists()
    measured = read_rows(rows or run / "bench.jsonl") if rows or (run / "bench.jsonl").exists() else []
    picture = output or run / "report.png"
    if output is None and picture.is_symlink():  # whoever made the run folder chose where it leads
        raise ConfigError(f"{picture} is a symbolic link; name the picture with --output")
    draw_report(run, measured, picture)
    print(f"wrote {printable(str(picture), most=4096)}")
