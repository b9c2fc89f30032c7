"""Runs: start one, resume one, load a trained one."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from bnnedge.config import RunConfig
from bnnedge.data import DATASETS
from bnnedge.data.dataset import Dataset, DatasetInfo, load_dataset
from bnnedge.errors import CheckpointError, ConfigError
from bnnedge.files import write_atomically
from bnnedge.layers.binary_layers import recompute_outputs, use_kernels
from bnnedge.methods import METHODS
from bnnedge.methods.method import Method
from bnnedge.models.create import check_model_name, create_model
from bnnedge.options import fill, plain
from bnnedge.train.checkpoint import Checkpoint, read_checkpoint, set_rng_state
from bnnedge.train.device import find_device, prepare_device
from bnnedge.train.distillation import Distillation
from bnnedge.train.distributed import ALONE, Group
from bnnedge.train.global_batch_norm import share_batch_norm
from bnnedge.train.loop import fit
from bnnedge.train.metrics import evaluate
from bnnedge.train.run_folder import RunFolder
from bnnedge.train.state import TrainingState, phase_of, restore

PATHS = ("data_root", "init", "teacher")
"""Settings that name files; a run's config.yaml holds them as absolute paths."""

FREE_ON_RESUME = ("device", "threads", "data_root", "compile", "kernels")
"""Settings that say where and how a run runs, not what it computes; a resumed run may change them."""


@dataclass(frozen=True)
class LoadedRun:
    """A trained network, ready to be evaluated or exported."""

    model: nn.Module
    """On the CPU, in eval mode, in its training form; ``bnnedge.layers.deploy.deploy`` gives the deploy form."""
    method: Method[Any]
    config: RunConfig
    dataset: DatasetInfo
    epoch: int
    """The epoch, counted from 1, after which the weights were saved."""


def start_run(config: RunConfig, out: Path, group: Group = ALONE) -> dict[str, Any]:
    """Train from scratch into the new folder ``out``; returns what ``result.json`` holds.

    Nothing is written before the settings, the data set and the model have proved sound, in every process of ``group``.
    """
    folder = RunFolder(out)
    group.main_only(folder.check_free)

    def prepare() -> TrainingState:
        resolved = resolve(config)
        dataset = load_dataset(resolved.dataset, _pixels(resolved), _path(resolved.data_root))
        resolved = dataclasses.replace(resolved, image_size=(dataset.info.image_size,))
        return make_state(resolved, dataset, fresh=True, group=group)

    state = group.everywhere(prepare)
    group.main_only(lambda: folder.create(state.config))
    return _train(state, folder)


def resume_run(out: Path, given: Mapping[str, Any] | None = None, group: Group = ALONE) -> dict[str, Any]:
    """Continue the run in ``out`` after its last finished epoch; a finished run's result is returned as it is.

    ``given`` are settings that the user repeats; only those of ``FREE_ON_RESUME`` may differ from the run's. So may the
    number of processes.
    """
    folder = RunFolder(out)
    checkpoint, config, result = group.main_only(lambda: _read_run(folder, given or {}))
    if result is not None:
        return result

    def prepare() -> TrainingState:
        dataset = load_dataset(config.dataset, _pixels(config), _path(config.data_root))
        state = make_state(config, dataset, fresh=checkpoint is None, group=group)
        if checkpoint is not None:
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


def load_run(run: Path, which: Literal["best", "last"] = "best") -> LoadedRun:
    """The network of a run folder's ``best.ckpt`` or ``last.ckpt``, or of a ``.ckpt`` file.

    Raises ``CheckpointError`` if there is none or it does not fit the model that it names.
    """
    if run.is_file():
        path = run
    else:
        folder = RunFolder(run)
        folder.check_exists()
        path = folder.best if which == "best" else folder.last
        if not path.exists():
            raise CheckpointError(f"{run} has no {path.name} yet: its first epoch is not finished")
    checkpoint = read_checkpoint(path)
    with torch.random.fork_rng(devices=[]):
        model, method = make_model(checkpoint.config, checkpoint.dataset)
        method.start_phase(model, phase_of(method.phases(checkpoint.config.epochs), checkpoint.epoch - 1))
    _load_weights(model, checkpoint, path)
    return LoadedRun(model.eval(), method, checkpoint.config, checkpoint.dataset, checkpoint.epoch)


def resolve(config: RunConfig) -> RunConfig:
    """The final settings for this machine. Raises for unknown names and for a device that is not there."""
    method = METHODS.load(config.method)
    DATASETS.check(config.dataset)
    check_model_name(config.model)
    resolved = config.resolve(method.defaults, method.Options)
    paths: dict[str, Any] = {name: _absolute(getattr(resolved, name)) for name in PATHS}
    return dataclasses.replace(
        resolved,
        model=_absolute_model(resolved.model),
        device="cuda" if find_device(resolved.device).type == "cuda" else "cpu",
        threads=resolved.threads or torch.get_num_threads(),
        **paths,
    )


def make_model(config: RunConfig, info: DatasetInfo) -> tuple[nn.Module, Method[Any]]:
    """The model of a resolved config with its method attached, freshly initialized, on the CPU."""
    model = create_model(
        config.model, num_classes=info.num_classes, in_channels=info.in_channels, image_size=info.image_size
    )
    method_class = METHODS.load(config.method)
    method: Method[Any] = method_class(fill(method_class.Options, config.method_options, f"method {config.method}"))
    method.attach(model)
    return model, method


def make_state(config: RunConfig, dataset: Dataset, *, fresh: bool = False, group: Group = ALONE) -> TrainingState:
    """The state before the first epoch of a resolved config; ``fresh`` takes the weights of ``config.init``."""
    torch.set_num_threads(config.threads or torch.get_num_threads())
    check_batches(config, dataset, group)
    device = prepare_device(config, group)
    # One seed for all three; NumPy's is limited to 32 bits.
    torch.manual_seed(config.seed)
    np.random.seed(config.seed % 2**32)
    random.seed(config.seed)
    model, method = make_model(config, dataset.info)
    _check_output(config.model, model, dataset.info)
    if fresh:
        _initialize(model, method, config)
    if config.ema is not None and not method.has_latent_weights:
        raise ConfigError(f"method {config.method} trains -1 and +1 themselves, which have no average; leave out --ema")
    if device.type == "cuda":
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    use_kernels(model, config.kernels)
    if config.recompute:
        recompute_outputs(model)
    if config.sync_batch_norm:
        share_batch_norm(model, group)
    distillation = None if config.teacher is None else make_distillation(config, dataset.info, device)
    return TrainingState(config, dataset, model, method, device, distillation, group)


def check_batches(config: RunConfig, dataset: Dataset, group: Group) -> None:
    """Raise ``ConfigError`` if an epoch has a batch too small for the processes and micro-batches."""
    size = dataset.size("train")
    sizes = {min(config.batch_size, size), size % config.batch_size} - {0, 1}  # a last single image is left out
    if group.size > 1 or config.accumulate > 1:
        group.check_sizes(sizes, config.accumulate, config.sync_batch_norm)


def _initialize(model: nn.Module, method: Method[Any], config: RunConfig) -> None:
    source = None if config.init is None else Path(config.init)
    needed = method.init_method
    if needed is not None and (source is None or read_checkpoint(_last_checkpoint(source)).config.method != needed):
        found = "none was given" if source is None else f"{config.init} is of another method"
        raise ConfigError(f"method {config.method} with these options needs --init with a run of {needed}; {found}")
    if method.needs_init and source is None:
        raise ConfigError(
            f"method {config.method} without its phase 1 starts from trained weights: give --init with a run of this "
            "network, of phase 1 or of another method"
        )
    if source is not None:
        initialize(model, config.model, source)


def make_distillation(config: RunConfig, info: DatasetInfo, device: torch.device) -> Distillation:
    """The loss against ``config.teacher``. Raises ``ConfigError`` if that network sees other images or classes."""
    assert config.teacher is not None
    teacher = load_run(Path(config.teacher))
    for what in ("class_names", "in_channels", "image_size", "mean", "std"):
        if getattr(teacher.dataset, what) != getattr(info, what):
            raise ConfigError(
                f"teacher {config.teacher} does not fit: {what} differs; it learnt {teacher.dataset.name} at "
                f"{teacher.dataset.image_size} pixels, this run learns {info.name} at {info.image_size}"
            )
    return Distillation(
        teacher.model.to(device), teacher.method.predict, config.distill_weight, config.distill_temperature
    )


def initialize(model: nn.Module, name: str, source: Path) -> None:
    """Give ``model`` the last weights of another run of the same network, whatever its method.

    Every parameter and buffer of the network must be there, with its shape; what belongs to the methods (in the
    binarizers) is taken over where both have it. Raises ``CheckpointError`` otherwise.
    """
    path = _last_checkpoint(source)
    saved, own = read_checkpoint(path).model, model.state_dict()
    fits = {k for k, v in own.items() if k in saved and saved[k].shape == v.shape}
    odd = [k for k in {**own, **saved} if k not in fits and ".binarizer." not in f".{k}"]
    if odd:
        raise CheckpointError(f"{path} does not fit model {name}: {', '.join(odd[:3])} missing or of another shape")
    model.load_state_dict({**own, **{k: saved[k] for k in fits}})


def _last_checkpoint(run: Path) -> Path:
    return run if run.is_file() else RunFolder(run).last


def _train(state: TrainingState, folder: RunFolder) -> dict[str, Any]:
    group = state.group
    if group.size > 1:
        group.main_only(lambda: folder.log(f"training on {group.size} processes"))
    fit(state, folder)
    best = group.main_only(lambda: read_checkpoint(folder.best))
    _load_weights(state.model, best, folder.best)
    test = evaluate(state.model, state.dataset, "test", state.device, state.method.predict, group)
    result = {
        "method": state.config.method,
        "model": state.config.model,
        "dataset": state.config.dataset,
        "seed": state.config.seed,
        "epochs": state.config.epochs,
        "best_epoch": best.best_epoch,
        "val_top1": best.best_val_top1,
        "test_top1": test.top1,
        "test_loss": test.loss,
        "test_images": test.images,
    }

    def write() -> None:
        write_atomically(folder.result, (json.dumps(result, indent=2) + "\n").encode())
        folder.log(f"test top-1 {test.top1:.2%} of best.ckpt (epoch {best.best_epoch})")

    group.main_only(write)
    return result


def _continue_from(checkpoint: Checkpoint, state: TrainingState, folder: RunFolder) -> None:
    try:
        restore(state, checkpoint)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder.last} does not fit model {state.config.model}: {_one_line(error)}") from error
    set_rng_state(checkpoint.rng)


def _settings_on_resume(saved: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    options_type = METHODS.load(saved.method).Options
    wanted = RunConfig.from_dict({"epochs": saved.epochs, **given})
    options = plain(fill(options_type, wanted.method_options, f"method {saved.method}"))
    pairs = [(n, getattr(wanted, n), getattr(saved, n)) for n in given if n not in ("method_options", *FREE_ON_RESUME)]
    pairs += [(n, options[n], saved.method_options.get(n)) for n in wanted.method_options]
    for name, value, old in pairs:
        if name == "model":
            value = _absolute_model(value)
        elif name in PATHS:
            value = _absolute(value)
        if value is not None and value != old:
            raise ConfigError(f"--resume keeps the run's settings: {name} is {old!r} there, {value!r} was given")
    moved = {n: getattr(wanted, n) for n in FREE_ON_RESUME if getattr(wanted, n) is not None and n in given}
    if "device" in moved:
        moved["device"] = find_device(moved["device"]).type
    return dataclasses.replace(saved, **moved)


def _load_weights(model: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    try:
        model.load_state_dict(checkpoint.model)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not fit model {checkpoint.config.model}: {_one_line(error)}") from error


@torch.no_grad()
def _check_output(name: str, model: nn.Module, info: DatasetInfo) -> None:
    """Try two images before a run folder is made, so that a model that does not fit is one clear message."""
    shape = (2, info.in_channels, info.image_size, info.image_size)
    try:
        output = model.eval()(torch.zeros(shape))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ConfigError(f"model {name} cannot take images of shape {shape}: {_one_line(error)}") from error
    if not isinstance(output, torch.Tensor) or output.shape != (2, info.num_classes):
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ConfigError(f"model {name} should give logits of shape (2, {info.num_classes}), but gave {found}")


def _absolute_model(name: str) -> str:
    if ".py:" not in name:
        return name
    path, _, attribute = name.rpartition(":")
    return f"{Path(path).resolve()}:{attribute}"


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).resolve())


def _pixels(config: RunConfig) -> int | None:
    if config.image_size is None:
        return None
    if len(config.image_size) > 1:
        raise ConfigError(f"image_size must be one number, since images are square, got {config.image_size}")
    return config.image_size[0]


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
