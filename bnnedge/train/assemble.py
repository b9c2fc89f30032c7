"""The state in which training begins, made from resolved settings and a data set."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnnedge.config import RunConfig
from bnnedge.data.dataset import Dataset
from bnnedge.data.info import DatasetInfo
from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import recompute_outputs, use_kernels
from bnnedge.methods.method import Method
from bnnedge.train.build import check_output, check_training_step, make_model
from bnnedge.train.checkpoint import read_checkpoint
from bnnedge.train.device import prepare_device
from bnnedge.train.distillation import Distillation
from bnnedge.train.distributed import ALONE, Group
from bnnedge.train.global_batch_norm import share_batch_norm
from bnnedge.train.load import initialize, last_checkpoint, load_run
from bnnedge.train.memory_need import check_training
from bnnedge.train.rng import seed_everything
from bnnedge.train.state import TrainingState

_MOST_THREADS, _THREADS_A_CPU = 128, 4
"""A run that was made on a larger machine goes on, with more threads than CPUs, up to the larger of the two bounds."""


def make_state(
    config: RunConfig,
    dataset: Dataset,
    *,
    fresh: bool = False,
    group: Group = ALONE,
    trust_code: bool = False,
    convert: Callable[[nn.Module], nn.Module] | None = None,
) -> TrainingState:
    """The state before the first epoch of a resolved config; ``fresh`` takes the weights of ``config.init``.

    ``trust_code`` is as for ``load_run``, for the teacher; ``convert`` is as for ``create_model``.
    """
    _set_threads(config)
    check_batches(config, dataset, group)
    images = min(config.batch_size, dataset.size("train")) // (config.accumulate * group.size)
    check_training(config, dataset.info, max(images, 1))
    device = prepare_device(config, group)
    seed_everything(config.seed)
    model, method = make_model(config, dataset.info, convert)
    check_output(config.model, model, dataset.info)
    if fresh:
        _initialize(model, method, config)
        check_training_step(config.model, model, method, dataset)
    if config.ema is not None and not method.has_latent_weights:
        raise ConfigError(f"method {config.method} trains -1 and +1 themselves, which have no average; leave out --ema")
    if device.type == "cuda":
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    use_kernels(model, config.kernels)
    if config.recompute:
        recompute_outputs(model)
    if config.sync_batch_norm:
        share_batch_norm(model, group)
    distillation = None if config.teacher is None else make_distillation(config, dataset.info, device, trust_code)
    return TrainingState(config, dataset, model, method, device, distillation, group)


def _set_threads(config: RunConfig) -> None:
    cpus = os.cpu_count() or 1
    most = max(_MOST_THREADS, _THREADS_A_CPU * cpus)
    if config.threads is not None and config.threads > most:
        raise ConfigError(
            f"threads must be at most {most} on this machine of {cpus} CPUs, got {config.threads}; choose --threads "
            f"{cpus}"
        )
    torch.set_num_threads(config.threads or torch.get_num_threads())


def check_batches(config: RunConfig, dataset: Dataset, group: Group) -> None:
    """Raise ``ConfigError`` if an epoch has a batch too small for the processes and micro-batches."""
    size = dataset.size("train")
    sizes = {min(config.batch_size, size), size % config.batch_size} - {0, 1}  # a last single image is left out
    if group.size > 1 or config.accumulate > 1:
        group.check_sizes(sizes, config.accumulate, config.sync_batch_norm)


def _initialize(model: nn.Module, method: Method[Any], config: RunConfig) -> None:
    source = None if config.init is None else Path(config.init)
    needed = method.init_method
    if needed is not None and (source is None or read_checkpoint(last_checkpoint(source)).config.method != needed):
        found = "none was given" if source is None else f"{config.init} is of another method"
        raise ConfigError(f"method {config.method} with these options needs --init with a run of {needed}; {found}")
    if method.needs_init and source is None:
        raise ConfigError(
            f"method {config.method} without its phase 1 starts from trained weights: give --init with a run of this "
            "network, of phase 1 or of another method"
        )
    if source is not None:
        initialize(model, config.model, source)


def make_distillation(
    config: RunConfig, info: DatasetInfo, device: torch.device, trust_code: bool = False
) -> Distillation:
    """The loss against ``config.teacher``. Raises ``ConfigError`` if that network learnt something else."""
    assert config.teacher is not None
    teacher = load_run(Path(config.teacher), trust_code=trust_code)
    for what in ("task", "classes", "preprocessing"):
        learnt, wanted = getattr(teacher.dataset, what), getattr(info, what)
        if learnt != wanted:
            raise ConfigError(
                f"teacher {config.teacher} does not fit: {what} differs; it learnt {teacher.dataset.name} with "
                f"{learnt}, this run learns {info.name} with {wanted}"
            )
    predict, task = teacher.method.predict, info.make_task()
    return Distillation(teacher.model.to(device), predict, task, config.distill_weight, config.distill_temperature)
