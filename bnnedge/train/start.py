"""Start a run in a new folder, or resume one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bnnedge.config import RunConfig
from bnnedge.data.prepare import load_dataset_as
from bnnedge.errors import CheckpointError, ConfigError, one_line
from bnnedge.files import write_atomically
from bnnedge.methods import METHODS
from bnnedge.models.user_code import check_consent, record_consent
from bnnedge.options import fill, plain
from bnnedge.tasks import TASKS
from bnnedge.tasks.task import Tally, scores_text
from bnnedge.train.assemble import make_state
from bnnedge.train.checkpoint import Checkpoint, read_checkpoint
from bnnedge.train.device import find_device
from bnnedge.train.distributed import ALONE, Group
from bnnedge.train.load import load_weights
from bnnedge.train.loop import fit
from bnnedge.train.metrics import evaluate
from bnnedge.train.resolve import PATHS, absolute, absolute_model, choose_dataset, path_or_none, resolve
from bnnedge.train.rng import set_rng_state
from bnnedge.train.run_folder import RunFolder
from bnnedge.train.state import TrainingState, restore

FREE_ON_RESUME = ("device", "threads", "data_root", "compile", "kernels")
"""Settings that say where and how a run runs, not what it computes; a resumed run may change them."""


def start_run(config: RunConfig, out: Path, group: Group = ALONE, *, trust_code: bool = False) -> dict[str, Any]:
    """Train from scratch into the new folder ``out``; returns what ``result.json`` holds.

    Nothing is written before the settings, the data set and the model have proved sound, in every process of ``group``.
    A Python file that ``config`` names as its model is run. ``trust_code`` is as for ``load_run``, for the teacher.
    """
    folder = RunFolder(out)
    group.main_only(folder.check_free)

    def prepare() -> TrainingState:
        dataset, resolved = choose_dataset(resolve(config))
        return make_state(resolved, dataset, fresh=True, group=group, trust_code=trust_code)

    state = group.everywhere(prepare)
    group.main_only(lambda: record_consent(state.config.model))
    group.main_only(lambda: folder.create(state.config))
    return _train(state, folder)


def resume_run(
    out: Path, given: Mapping[str, Any] | None = None, group: Group = ALONE, *, trust_code: bool = False
) -> dict[str, Any]:
    """Continue the run in ``out`` after its last finished epoch; a finished run's result is returned as it is.

    ``given`` are settings that the user repeats; only those of ``FREE_ON_RESUME`` may differ from the run's. So may the
    number of processes. A model from a Python file is built only if ``given`` names it, too, or as for ``load_run``.
    """
    folder = RunFolder(out)
    checkpoint, config, result = group.main_only(lambda: _read_run(folder, given or {}))
    if result is not None:
        return result
    check_consent(config.model, str(folder.path), trust_code=trust_code or "model" in (given or {}))

    def prepare() -> TrainingState:
        if checkpoint is None:
            dataset, chosen = choose_dataset(config)
            return make_state(chosen, dataset, fresh=True, group=group, trust_code=trust_code)
        dataset = load_dataset_as(checkpoint.dataset, path_or_none(config.data_root), config.augment)
        state = make_state(config, dataset, group=group, trust_code=trust_code, convert=checkpoint.convert)
        _continue_from(checkpoint, state, folder)
        return state

    state = group.everywhere(prepare)
    group.main_only(lambda: _reopen(folder, state))
    return _train(state, folder)


def _read_run(
    folder: RunFolder, given: Mapping[str, Any]
) -> tuple[Checkpoint | None, RunConfig, dict[str, Any] | None]:
    """The last checkpoint, the settings to continue with, and the result if the run is finished."""
    folder.check_exists()
    checkpoint = read_checkpoint(folder.last) if folder.last.exists() else None
    config = _settings_on_resume(checkpoint.config if checkpoint else RunConfig.read(folder.config), given)
    if not folder.result.exists():
        return checkpoint, config, None
    try:
        return checkpoint, config, dict(json.loads(folder.result.read_text(encoding="utf-8")))
    except ValueError as error:
        raise CheckpointError(f"{folder.result} is damaged; delete it and --resume evaluates again") from error


def _reopen(folder: RunFolder, state: TrainingState) -> None:
    # A crash between the two writes leaves best.ckpt one improvement behind; then last.ckpt is the best.
    if state.epoch and state.best_epoch == state.epoch:
        write_atomically(folder.best, folder.last.read_bytes())
    folder.keep_metrics(state.epoch)
    folder.log(f"resumed after epoch {state.epoch}")


def _train(state: TrainingState, folder: RunFolder) -> dict[str, Any]:
    group = state.group
    if group.size > 1:
        group.main_only(lambda: folder.log(f"training on {group.size} processes"))
    fit(state, folder)
    best = group.main_only(lambda: read_checkpoint(folder.best))
    load_weights(state.model, best, folder.best)
    test = evaluate(state.model, state.dataset, "test", state.device, state.method.predict, group)
    result = _result(state, best, test)

    def write() -> None:
        write_atomically(folder.result, (json.dumps(result, indent=2) + "\n").encode())
        folder.log(f"test: {scores_text(test.task, test.scores)} of best.ckpt (epoch {best.best_epoch})")

    group.main_only(write)
    return result


def _result(state: TrainingState, best: Checkpoint, test: Tally) -> dict[str, Any]:
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


def result_text(result: Mapping[str, Any]) -> str:
    """The scores of ``result.json`` in one line."""
    # Results of earlier versions name neither; the scores that they lack are left out.
    task = TASKS.load(result.get("task", "classification"))(result.get("outputs", 1000))
    first = task.scores[0]
    test = {name.removeprefix("test_"): value for name, value in result.items() if name.startswith("test_")}
    samples = test.get("samples", test.get("images"))
    text = f"test {scores_text(task, test)} ({samples} samples)"
    if f"val_{first.name}" in result:
        text += f", validation {first.label} {first.text(result[f'val_{first.name}'])} at epoch {result['best_epoch']}"
    return f"{text}; {result['note']}" if "note" in result else text


def _continue_from(checkpoint: Checkpoint, state: TrainingState, folder: RunFolder) -> None:
    try:
        restore(state, checkpoint)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder.last} does not fit model {state.config.model}: {one_line(error)}") from error
    set_rng_state(checkpoint.rng)


def _settings_on_resume(saved: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    options_type = METHODS.load(saved.method).Options
    wanted = RunConfig.from_dict({"epochs": saved.epochs, **given})
    options = plain(fill(options_type, wanted.method_options, f"method {saved.method}"))
    pairs = [(n, getattr(wanted, n), getattr(saved, n)) for n in given if n not in ("method_options", *FREE_ON_RESUME)]
    pairs += [(n, options[n], saved.method_options.get(n)) for n in wanted.method_options]
    for name, value, old in pairs:
        if name == "model":
            value = absolute_model(value)
        elif name in PATHS:
            value = absolute(value)
        if value is not None and value != old:
            raise ConfigError(f"--resume keeps the run's settings: {name} is {old!r} there, {value!r} was given")
    moved = {n: getattr(wanted, n) for n in FREE_ON_RESUME if getattr(wanted, n) is not None and n in given}
    if "device" in moved:
        moved["device"] = find_device(moved["device"]).type
    return dataclasses.replace(saved, **moved)
