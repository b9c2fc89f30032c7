"""``bnnedge export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnnedge.cli.registries import complete_names, complete_words
from bnnedge.cli.trust import TrustCode


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or checkpoint.")],
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="File format, one of `bnnedge list targets`.",
            autocompletion=complete_names("targets"),
        ),
    ] = "onnx",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File. [default: RUN/MODEL.ending]")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Compare the file with the checkpoint.")] = True,
    stem: Annotated[
        str,
        typer.Option(
            metavar="fp32|int8",
            help="Arithmetic of the first convolution: float32, or 8 bits, faster and a little different.",
            autocompletion=complete_words(("fp32", "int8")),
        ),
    ] = "fp32",
    trust_code: TrustCode = False,
) -> None:
    """Write a run's best weights as a bit-packed file, after checking that the file computes the same."""
    from rich.console import Console

    from bnnedge.export.targets import TARGETS

    TARGETS.check(target)
    from bnnedge.export.run import export_run

    report = export_run(run, target, output, check=verify, stem=stem, trust_code=trust_code)
    console = Console()
    console.print(report.table())
    if report.stem is not None:
        console.print(str(report.stem), highlight=False, markup=False)
    checked = str(report.verification or f"not verified: {report.not_verified}")
    console.print(checked, highlight=False, markup=False)  # "bnnedge[lce]" is no markup
