"""``bnnedge train``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnnedge.cli.given import merge
from bnnedge.cli.settings import flag_name, with_settings_as_flags
from bnnedge.cli.trust import TrustCode
from bnnedge.errors import ConfigError, InterruptedRunError, printable

if TYPE_CHECKING:
    from bnnedge.config import RunConfig


@with_settings_as_flags
def train(
    context: typer.Context,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE.yaml|FILE.json",
            rich_help_panel="Run",
            help="Settings as a run's config.yaml holds them; flags win over the file.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel="Run",
            help="Run folder that is made. [default: runs/METHOD_MODEL_DATASET]",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", rich_help_panel="Run", help="Continue the run in the run folder."),
    ] = False,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", rich_help_panel="Run", help="The same as --KEY VALUE; may be repeated."
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="N,N",
            rich_help_panel="Several processes",
            help="Train on these GPUs of this machine, one process on each.",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            metavar="INTEGER",
            rich_help_panel="Several processes",
            help="Train in this many processes on this machine, each on a GPU of its own or all on the CPU.",
        ),
    ] = None,
    trust_code: TrustCode = False,
    **flags: Any,
) -> None:
    """Train a network, keep the weights with the best validation score, and test those once at the end.

    A setting that is not given has the default that stands beside it. The options of each method stand last; with
    --method NAME --help, those of that method alone.
    """
    given = merge(flags, assignments or [], config_file, check_options=not resume)
    from bnnedge.config import RunConfig

    config = RunConfig.from_dict(given)
    if config_file is not None and "model" not in merge(flags, assignments or [], None, check_options=False):
        from bnnedge.models.user_code import check_consent

        check_consent(config.model, str(config_file), trust_code=trust_code)
    if gpus is not None or processes is not None:
        raise SystemExit(_launch(context.obj, config, gpus, processes))
    folder = out or Path("runs") / f"{config.method}_{config.model.rpartition(':')[2]}_{config.dataset}"
    try:
        result = _run(config, given, folder, resume, trust_code)
    except KeyboardInterrupt:
        if not (folder / "config.yaml").exists():
            raise
        raise InterruptedRunError("interrupted; the run continues with --resume") from None
    if result is not None:
        print(_line(result, folder))


def _run(
    config: RunConfig, given: Mapping[str, Any], folder: Path, resume: bool, trust_code: bool
) -> dict[str, Any] | None:
    """Return what ``result.json`` holds, or None in all processes but the one that speaks."""
    from bnnedge.train.distributed import join
    from bnnedge.train.start import resume_run, start_run

    with join() as group:
        if resume:
            result = resume_run(folder, given, group, trust_code=trust_code)
        else:
            result = start_run(config, folder, group, trust_code=trust_code)
    return result if group.is_main else None


def _line(result: Mapping[str, Any], folder: Path) -> str:
    from bnnedge.train.result import result_text

    return f"{result_text(result)}; run folder {printable(str(folder), most=4096)}"


def _launch(arguments: list[str], config: RunConfig, gpus: str | None, processes: int | None) -> int:
    from bnnedge.train.launch import launch, parse_gpus, without_launch_options

    words = without_launch_options([_normalized(word) for word in arguments])
    if gpus is None:
        return launch(words, processes or 0)
    if processes is not None or config.device == "cpu":
        raise ConfigError(f"--gpus is at odds with {'--device cpu' if processes is None else '--processes'}")
    chosen = parse_gpus(gpus)
    return launch(words, len(chosen), chosen)


def _normalized(word: str) -> str:
    flag, equals, value = word.partition("=")
    return f"{flag_name(flag)}{equals}{value}" if word.startswith("--") else word
