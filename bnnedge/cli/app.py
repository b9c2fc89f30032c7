"""The commands in one table, and the options that stand before them."""

from __future__ import annotations

from typing import Annotated

import typer

from bnnedge.cli.bench import bench
from bnnedge.cli.doctor import doctor
from bnnedge.cli.evaluate import evaluate
from bnnedge.cli.export import export
from bnnedge.cli.list import list_names
from bnnedge.cli.report import report
from bnnedge.cli.settings import flag_name
from bnnedge.cli.summary import summary
from bnnedge.cli.train import train
from bnnedge.cli.train_help import TrainCommand

app = typer.Typer(
    name="bnnedge",
    help="Train binarized neural networks, export them to bit-packed files, run and measure them on small computers.",
    no_args_is_help=False,
    context_settings={"token_normalize_func": flag_name},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(cls=TrainCommand)(train)
app.command()(evaluate)
app.command()(export)
app.command()(summary)
app.command()(bench)
app.command()(report)
app.command()(doctor)
app.command("list")(list_names)


def _print_version(wanted: bool) -> None:
    if wanted:
        from bnnedge import __version__

        print(f"bnnedge {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    # `main` takes --debug out wherever it stands; it is declared here for --help.
    pass
