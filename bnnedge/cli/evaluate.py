"""``bnnedge evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bnnedge.cli.registries import complete_names, complete_words
from bnnedge.cli.trust import TrustCode
from bnnedge.errors import ConfigError
from bnnedge.files import write_output

if TYPE_CHECKING:
    from bnnedge.tasks.measured import Measured


def evaluate(
    source: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="Run folder, checkpoint or exported file.")],
    split: Annotated[
        str,
        typer.Option(
            metavar="train|val|test",
            help="Part of the data set.",
            autocompletion=complete_words(("train", "val", "test")),
        ),
    ] = "test",
    device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda",
            help="Where PyTorch runs the network of a run.",
            autocompletion=complete_words(("auto", "cpu", "cuda")),
        ),
    ] = "auto",
    runtime: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What runs an exported file: auto, or one of `bnnedge list runtimes`.",
            autocompletion=complete_names("runtimes", "auto"),
        ),
    ] = "auto",
    data_root: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the data sets. [default: $BNNEDGE_DATA]")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the result to this file.")
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Measure the scores of a run's best weights, or of an exported file, on the data set that it names."""
    from rich.console import Console

    from bnnedge.data.dataset import SPLITS

    if split not in SPLITS:
        raise ConfigError(f"--split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not source.exists():
        raise ConfigError(f"{source} does not exist; expected a run folder, a checkpoint or an exported file")
    console = Console(stderr=True)
    if source.is_dir() or source.suffix == ".ckpt":
        from bnnedge.train.evaluate import evaluate_run

        found = evaluate_run(source, split, device, data_root, console, trust_code=trust_code)
    else:
        from bnnedge.export.evaluate import evaluate_file

        found = evaluate_file(source, split, runtime, data_root, console)
    if json_file is not None:
        result = {"source": str(source), "split": split, **found.to_dict()}
        write_output(json_file, (json.dumps(result, indent=2) + "\n").encode())
    print(_line(found, split))


def _line(found: Measured, split: str) -> str:
    return f"{found.text()} on {found.dataset} {split} ({found.samples} samples), {found.runtime}"
