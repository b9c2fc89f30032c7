"""Start a run in a new folder, or resume one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bnnedge.config import RunConfig
from bnnedge.data.dataset import load_dataset_as
from bnnedge.errors import CheckpointError, ConfigError, one_line
from bnnedge.files import write_atomically
from bnnedge.methods import METHODS
from bnnedge.models.user_code import check_consent, record_consent
from bnnedge.options import fill, plain
from bnnedge.tasks.task import scores_text
from bnnedge.train.assemble import make_state
from bnnedge.train.checkpoint import Checkpoint, read_checkpoint
from bnnedge.train.device import find_device
from bnnedge.train.distributed import ALONE, Group
from bnnedge.train.load import load_weights
from bnnedge.train.loop import fit
from bnnedge.train.metrics import evaluate
from bnnedge.train.resolve import PATHS, absolute, absolute_model, choose_dataset, path_or_none, resolve
from bnnedge.train.result import make_result, read_result
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
    with group.main_holds(folder.locked()):
        return _train(state, folder)


def resume_run(
    out: Path, given: Mapping[str, Any] | None = None, group: Group = ALONE, *, trust_code: bool = False
) -> dict[str, Any]:
    """Continue the run in ``out`` after its last finished epoch; a finished run's result is returned as it is.

    ``given`` are settings that the user repeats; only those of ``FREE_ON_RESUME`` may differ from the run's. So may the
    number of processes. A model from a Python file is built only if ``given`` names it, too, or as for ``load_run``.
    """
    folder = RunFolder(out)
    result = group.main_only(lambda: _read_result(folder, given or {}))
    if result is not None:
        return result
    with group.main_holds(folder.locked()):
        return _resume_locked(folder, given or {}, group, trust_code)


def _resume_locked(folder: RunFolder, given: Mapping[str, Any], group: Group, trust_code: bool) -> dict[str, Any]:
    checkpoint, config = group.main_only(lambda: _read_run(folder, given))
    check_consent(config.model, str(folder.path), trust_code=trust_code or "model" in given)

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


def _read_result(folder: RunFolder, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of a finished run, whose settings are compared with those given; None if it is not finished."""
    folder.check_exists()
    if not folder.result.exists():
        return None
    _read_run(folder, given)
    return read_result(folder.result)


def _read_run(folder: RunFolder, given: Mapping[str, Any]) -> tuple[Checkpoint | None, RunConfig]:
    """The last checkpoint and the settings to continue with."""
    checkpoint = read_checkpoint(folder.last) if folder.last.exists() else None
    return checkpoint, _settings_on_resume(checkpoint.config if checkpoint else RunConfig.read(folder.config), given)


def _reopen(folder: RunFolder, state: TrainingState) -> None:
    folder.remove_unfinished()
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
    result = make_result(state, best, test)

    def write() -> None:
        write_atomically(folder.result, (json.dumps(result, indent=2) + "\n").encode())
        folder.log(f"test: {scores_text(test.task, test.scores)} of best.ckpt (epoch {best.best_epoch})")

    group.main_only(write)
    return result


def _continue_from(checkpoint: Checkpoint, state: TrainingState, folder: RunFolder) -> None:
    try:
        restore(state, checkpoint)
    except (RuntimeError, ValueError, KeyError, CheckpointError) as error:
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
