"""Continual learning by BayesBiNN's prior: ``python -m bnnedge.benchmarks.continual``.

As usual in continual learning, a task is one of several data sets that are learnt one after another. Here each task is
the handwritten digits with their pixels in an order of its own, the same for all its images. A task is learnt in a run
that starts from the weights of the task before, once with the posterior of that run as prior and once without. After
each task the network is tested on all tasks so far.

Meng et al. 2020, "Training Binary Neural Networks using the Bayesian Learning Rule", arXiv:2002.10778.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from bnnedge.config import RunConfig
from bnnedge.data.dataset import SPLITS, Dataset, load_dataset, prepare
from bnnedge.data.source import source_of_tensors
from bnnedge.layers.binary_layers import BinaryLinear
from bnnedge.train.assemble import make_state
from bnnedge.train.loop import fit
from bnnedge.train.metrics import evaluate
from bnnedge.train.resolve import resolve
from bnnedge.train.run_folder import RunFolder
from bnnedge.train.state import TrainingState


def network(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A perceptron of two hidden layers whose only trained parameters are binary weights."""

    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        return [BinaryLinear(inputs, outputs), nn.BatchNorm1d(outputs, affine=False)]

    hidden = 256
    return nn.Sequential(
        nn.Flatten(),
        *layer(in_channels * image_size**2, hidden),
        nn.ReLU(),
        *layer(hidden, hidden),
        nn.ReLU(),
        *layer(hidden, num_classes),
    )


def permuted(dataset: Dataset, task: int) -> Dataset:
    """``dataset`` with the pixels of every image in the order of task ``task``; task 0 is the data set itself."""
    info = dataset.info
    count = info.preprocessing.height * info.preprocessing.width
    order = torch.randperm(count, generator=torch.Generator().manual_seed(task)) if task else torch.arange(count)
    splits: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for split in SPLITS:
        pixels, labels = (torch.from_numpy(array) for array in dataset.raw_arrays(split))
        splits[split] = (pixels.flatten(2)[..., order].view_as(pixels), labels)
    return prepare(
        source_of_tensors(f"{info.name} {task}", info.classes, splits, scale=info.preprocessing.scale), augment="none"
    )


def learn(tasks: list[Dataset], config: RunConfig, folder: Path, with_prior: bool) -> list[list[float]]:
    """Test score of the network after each task on each task up to that one: [task learnt][task tested]."""
    found = []
    for number, dataset in enumerate(tasks):
        settings = config.to_dict()
        if number:
            settings["init"] = str(folder / str(number - 1))
            settings["method_options"] = {**config.method_options, "prior": "init" if with_prior else "zero"}
        state = make_state(resolve(RunConfig.from_dict(settings)), dataset, fresh=True)
        run = RunFolder(folder / str(number))
        run.create(state.config)
        fit(state, run)
        found.append([_test_score(state, seen) for seen in tasks[: number + 1]])
    return found


def _test_score(state: TrainingState, dataset: Dataset) -> float:
    return evaluate(state.model, dataset, "test", state.device, state.method.predict).first


def main(
    tasks: Annotated[int, typer.Option(min=2)] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each task.")] = 30,
    seed: int = 0,
    temperature: float = 1e-2,
    posterior_lr: float = 0.03,
    kl_weight: float = 1.0,
    evaluate_steps: Annotated[
        int, typer.Option(min=0, help="Networks that are sampled for a prediction; 0: the mode of the posterior.")
    ] = 10,
) -> None:
    """Learn permuted digits one task after another, with and without the prior, and print test top-1."""
    options = {
        "temperature": temperature,
        "posterior_lr": posterior_lr,
        "kl_weight": kl_weight,
        "evaluate_steps": evaluate_steps,
        "a32": True,
    }
    config = RunConfig(
        "bayesbinn",
        f"{Path(__file__).resolve()}:network",
        image_size=(8,),
        epochs=epochs,
        batch_size=64,
        seed=seed,
        method_options=options,
    )
    digits = load_dataset("digits", 8)
    datasets = [permuted(digits, task) for task in range(tasks)]
    table = Table(title="test top-1 in percent")
    for column in ("prior", "after task", *(f"on task {task + 1}" for task in range(tasks)), "mean"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for with_prior in (False, True):
            name = "the last posterior" if with_prior else "none"
            for number, scores in enumerate(learn(datasets, config, Path(folder) / name, with_prior)):
                cells = [f"{100 * score:.1f}" for score in scores] + [""] * (tasks - len(scores))
                mean = f"{100 * sum(scores) / len(scores):.1f}"
                table.add_row(name, str(number + 1), *cells, mean, end_section=number == tasks - 1)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
