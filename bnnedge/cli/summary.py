"""``bnnedge summary``."""

from __future__ import annotations

from typing import Annotated

import typer

from bnnedge.cli.registries import complete_names
from bnnedge.cli.trust import TrustCode
from bnnedge.errors import ConfigError


def summary(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN|FILE",
            help="Model name, run folder or exported file.",
            autocompletion=complete_names("models"),
        ),
    ],
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes, for a model name. [default: the model's]")
    ] = None,
    in_channels: Annotated[
        int | None, typer.Option(min=1, help="Channels of the input images, for a model name. [default: the model's]")
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS|HEIGHTxWIDTH",
            help="Size of the input images, for a model name. [default: the model's]",
        ),
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Show each layer's shapes, parameters by bit width, memory and multiply-accumulates."""
    from rich.console import Console

    from bnnedge.config import RunConfig
    from bnnedge.export.summary import summarize, summary_table

    try:
        size = None if image_size is None else RunConfig.from_dict({"image_size": image_size}).image_size
    except ConfigError as error:
        raise ConfigError(f"--image-size: {error}") from error
    rows = summarize(source, num_classes=num_classes, in_channels=in_channels, image_size=size, trust_code=trust_code)
    Console().print(summary_table(rows, source))
