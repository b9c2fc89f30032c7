"""``python -m bnnedge.benchmarks.methods accuracy|cost``: Markdown on stdout, and JSON lines."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Annotated

import typer

from bnnedge.benchmarks.environment import read_environment
from bnnedge.benchmarks.methods import accuracy as acc
from bnnedge.benchmarks.methods import cost as costs
from bnnedge.benchmarks.methods.cost_report import report
from bnnedge.config import RunConfig
from bnnedge.errors import BnnedgeError
from bnnedge.files import write_output
from bnnedge.methods import METHODS

app = typer.Typer(add_completion=False)
Methods = Annotated[list[str] | None, typer.Option(help="Method, several times for several; all if left out.")]
Json = Annotated[Path | None, typer.Option(help="JSON lines file to write.")]


@app.command()
def accuracy(
    folder: Annotated[Path, typer.Option(help="Where the runs are kept; those that are there are not trained again.")],
    method: Methods = None,
    model: Annotated[list[str] | None, typer.Option(help="Model, several times for several.")] = None,
    dataset: str = "digits",
    image_size: Annotated[int, typer.Option(help="Pixels.")] = 8,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of each run. [default: vgg_small_1w1a 8, others 40]")
    ] = None,
    batch_size: int = 64,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method and model, with seeds from 0.")] = 3,
    json: Json = None,
) -> None:
    """Train every method on every model and compare the test score with the float32 twin's."""
    configs = [
        acc.short_run(
            RunConfig(
                method=method_name,
                model=model_name,
                dataset=dataset,
                image_size=(image_size,),
                epochs=epochs or acc.EPOCHS.get(model_name, 40),
                batch_size=batch_size,
                seed=seed,
            )
        )
        for seed, model_name, method_name in itertools.product(
            range(seeds), model or ["vgg_small_1w1a", "resnet20_1w1a"], method or METHODS
        )
    ]
    trials = []
    for trial in acc.train(configs, folder, lambda line: print(line, file=sys.stderr, flush=True)):
        trials.append(trial)
        if json is not None:
            acc.write_rows(trials, json)
    machine = read_environment()
    print(f"{acc.caption(trials)} {machine.cpu}, torch {machine.versions['torch']}, {machine.date_utc[:10]}.\n")
    print(acc.table(trials))


@app.command()
def cost(
    method: Methods = None,
    model: str = "resnet18_1w1a",
    image_size: Annotated[int, typer.Option(help="Pixels.")] = 32,
    batch_size: int = 32,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    warmup: Annotated[int, typer.Option(min=0, help="Steps of each contender before the measured ones.")] = 2,
    runs: Annotated[int, typer.Option(min=1, help="Measured steps of each contender.")] = 7,
    json: Json = None,
    markdown: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
) -> None:
    """Time one training step of every method, and what memory training takes, next to plain PyTorch STE."""
    setting = costs.Setting(model, image_size, batch_size, device, threads)
    rows = costs.measure(costs.labels(method or list(METHODS)), setting, warmup, runs)
    if json is not None:
        write_output(json, "".join(f"{row.to_json()}\n" for row in rows).encode())
    text = report(rows, " ".join(["python -m bnnedge.benchmarks.methods", *sys.argv[1:]]))
    if markdown is not None:
        write_output(markdown, text.encode())
    print(text)


if __name__ == "__main__":
    try:
        app(standalone_mode=False)
    except BnnedgeError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
