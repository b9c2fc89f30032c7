"""The settings of a run, made from the user's: names are checked, defaults filled in, and the data set is chosen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from bnnedge.config import RunConfig
from bnnedge.data import DATASETS
from bnnedge.data.dataset import Dataset, load_dataset
from bnnedge.methods import METHODS
from bnnedge.models import MODELS
from bnnedge.models.create import check_model_name
from bnnedge.models.user_code import is_user_code
from bnnedge.tasks import TASKS
from bnnedge.train.device import find_device

PATHS = ("data_root", "init", "teacher")
"""Settings that name files; a run's config.yaml holds them as absolute paths."""


def resolve(config: RunConfig) -> RunConfig:
    """The final settings for this machine. Raises for unknown names and for a device that is not there."""
    method = METHODS.load(config.method)
    DATASETS.check(config.dataset)
    check_model_name(config.model)
    if config.task is not None:
        TASKS.check(config.task)
    resolved = config.resolve(method.defaults, method.Options)
    paths: dict[str, Any] = {name: absolute(getattr(resolved, name)) for name in PATHS}
    return dataclasses.replace(
        resolved,
        model=absolute_model(resolved.model),
        task=resolved.task or _task_of_network(resolved.model),
        device="cuda" if find_device(resolved.device).type == "cuda" else "cpu",
        threads=resolved.threads or torch.get_num_threads(),
        **paths,
    )


def choose_dataset(config: RunConfig) -> tuple[Dataset, RunConfig]:
    """The data set of a resolved config, and the config with the task and the image size that came of it."""
    size = config.image_size
    dataset = load_dataset(
        config.dataset,
        None if size is None else (size[0], size[-1]),
        path_or_none(config.data_root),
        preprocess=config.preprocess,
        augment=config.augment,
        validation_split=config.validation_split,
        task=config.task,
    )
    info = dataset.info
    return dataset, dataclasses.replace(config, task=info.task, image_size=info.preprocessing.size)


def absolute_model(name: str) -> str:
    """A model's name; that of a file's class or function with the file's absolute path."""
    if not is_user_code(name):
        return name
    path, _, attribute = name.rpartition(":")
    return f"{Path(path).resolve()}:{attribute}"


def absolute(path: str | None) -> str | None:
    """The absolute path, or None."""
    return None if path is None else str(Path(path).resolve())


def path_or_none(text: str | None) -> Path | None:
    """A setting's text as a path, or None."""
    return None if text is None else Path(text)


def _task_of_network(name: str) -> str | None:
    """The task that a registered network is made for; None for a user's own, which takes the data set's."""
    return None if is_user_code(name) else MODELS.load(name).task
