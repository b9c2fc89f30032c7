"""``--trust-code``, of the commands that read runs and files which may name a Python file."""

from __future__ import annotations

from typing import Annotated

import typer

TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Run the Python file that the run names as its model, also if you have not trained with it yourself.",
    ),
]
