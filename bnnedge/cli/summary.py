"""``bnnedge summary``."""

from __future__ import annotations

from typing import Annotated

import typer

from bnnedge.cli.registries import complete_names


def summary(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN|FILE",
            help="Model name, run folder or exported file.",
            autocompletion=complete_names("models"),
        ),
    ],
    num_classes: Annotated[int, typer.Option(min=1, help="Number of classes, for a model name.")] = 10,
    in_channels: Annotated[int, typer.Option(min=1, help="Channels of the input images, for a model name.")] = 3,
    image_size: Annotated[
        int, typer.Option(min=1, help="Height and width of the input images in pixels, for a model name.")
    ] = 32,
) -> None:
    """Show each layer's shapes, parameters by bit width, memory and multiply-accumulates."""
    from rich.console import Console

    from bnnedge.export.summary import summarize, summary_table

    rows = summarize(source, num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    Console().print(summary_table(rows, source))
