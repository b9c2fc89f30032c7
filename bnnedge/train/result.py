"""What ``result.json`` holds: the scores of a finished run's best weights on the test split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from bnnedge.config import MOST_EPOCHS
from bnnedge.errors import BnnedgeError, CheckpointError, printable
from bnnedge.files import read_within
from bnnedge.schema import Number, check, read_json
from bnnedge.tasks import TASKS
from bnnedge.tasks.task import Tally, Task, scores_text
from bnnedge.train.checkpoint import Checkpoint
from bnnedge.train.state import TrainingState

_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class _Facts:
    """All but the numbers ``val_SCORE`` and ``test_SCORE``, as the file's schema.

    Results of earlier versions lack those that have a default here.
    """

    method: str
    model: str
    dataset: str
    seed: int
    epochs: Annotated[int, Field(ge=1, le=MOST_EPOCHS)]
    best_epoch: Annotated[int, Field(ge=1, le=MOST_EPOCHS)]
    task: str = "classification"
    outputs: Annotated[int, Field(ge=1, lt=2**31)] = 1000
    validated_on: Literal["val", "test"] | None = None
    note: str = ""


def make_result(state: TrainingState, best: Checkpoint, test: Tally) -> dict[str, Any]:
    """What ``result.json`` holds. ``validated_on`` says which split chose the epoch, None if none did."""
    config, first = state.config, state.task.scores[0].name
    chosen_on = None if best.best_score is None else config.validate_on
    result: dict[str, Any] = {
        "method": config.method,
        "model": config.model,
        "dataset": config.dataset,
        "task": state.task.name,
        "outputs": state.task.outputs,
        "seed": config.seed,
        "epochs": config.epochs,
        "best_epoch": best.best_epoch,
        "validated_on": chosen_on,
    }
    if chosen_on == "val":
        result[f"val_{first}"] = best.best_score
    if chosen_on == "test":
        result["note"] = "the test split chose the epoch, so the test scores are better than on unseen samples"
    test_scores = {f"test_{name}": value for name, value in test.scores.items()}
    return {**result, **test_scores, "test_loss": test.loss, "test_samples": test.samples}


def read_result(path: Path) -> dict[str, Any]:
    """The contents of a ``result.json``. Raises ``CheckpointError`` if it is damaged."""
    try:
        found = read_json(read_within(path, _MOST_BYTES, CheckpointError), str(path), CheckpointError)
        _check(found, str(path))
    except BnnedgeError as error:
        raise CheckpointError(f"{error}; delete this file and --resume evaluates again") from error
    return dict(found)


def _check(found: Any, what: str) -> None:
    if not isinstance(found, dict):
        raise CheckpointError(f"{what}: expected the result of a run, found {type(found).__name__}")
    names = {field.name for field in dataclasses.fields(_Facts)}
    facts = check({name: value for name, value in found.items() if name in names}, _Facts, what, CheckpointError)
    others = {name: value for name, value in found.items() if name not in names}
    numbers = check(others, dict[str, Number], what, CheckpointError)
    if odd := [name for name in numbers if not name.startswith(("val_", "test_"))]:
        raise CheckpointError(f"{what}: {odd[0]} is unknown")
    TASKS.check(facts.task)
    first = _task(found).scores[0].name
    if f"test_{first}" not in numbers or not {"test_samples", "test_images"} & numbers.keys():
        there = ", ".join(numbers) or "neither"
        raise CheckpointError(f"{what}: expected test_{first} and test_samples, found {there}")


def result_text(result: Mapping[str, Any]) -> str:
    """The scores of ``result.json`` in one line; those that results of earlier versions lack are left out."""
    task = _task(result)
    first = task.scores[0]
    test = {name.removeprefix("test_"): value for name, value in result.items() if name.startswith("test_")}
    samples = test.get("samples", test.get("images"))
    text = f"test {scores_text(task, test)} ({samples} samples)"
    if f"val_{first.name}" in result:
        text += f", validation {first.label} {first.text(result[f'val_{first.name}'])} at epoch {result['best_epoch']}"
    return f"{text}; {printable(result['note'])}" if "note" in result else text


def _task(result: Mapping[str, Any]) -> Task:
    task: Task = TASKS.load(result.get("task", _Facts.task))(result.get("outputs", _Facts.outputs))
    return task
