"""Trained networks and weights, out of run folders and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from bnnedge.config import RunConfig
from bnnedge.data.info import DatasetInfo
from bnnedge.errors import CheckpointError, one_line
from bnnedge.methods.method import Method
from bnnedge.models.user_code import check_consent
from bnnedge.train.build import make_model
from bnnedge.train.checkpoint import Checkpoint, read_checkpoint
from bnnedge.train.run_folder import RunFolder
from bnnedge.train.state import phase_of


@dataclass(frozen=True)
class LoadedRun:
    """A trained network, ready to be evaluated or exported."""

    model: nn.Module
    """The network on the CPU, in eval mode and in its training form, of which ``deploy`` makes the deploy form."""
    method: Method[Any]
    config: RunConfig
    dataset: DatasetInfo
    epoch: int
    """The epoch, counted from 1, after which the weights were saved."""


def load_run(run: Path, which: Literal["best", "last"] = "best", *, trust_code: bool = False) -> LoadedRun:
    """The network of a run folder's ``best.ckpt`` or ``last.ckpt``, or of a ``.ckpt`` file.

    A model from a Python file is built only if this user has trained with that file here, or with ``trust_code``:
    whoever made the checkpoint chose the file that runs. Raises ``ConfigError`` otherwise, and ``CheckpointError`` if
    there is no checkpoint or it does not fit the model that it names.
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
    check_consent(checkpoint.config.model, str(path), trust_code=trust_code)
    with torch.random.fork_rng(devices=[]):
        model, method = make_model(checkpoint.config, checkpoint.dataset, checkpoint.convert)
        method.start_phase(model, phase_of(method.phases(checkpoint.config.epochs), checkpoint.epoch - 1))
    load_weights(model, checkpoint, path)
    return LoadedRun(model.eval(), method, checkpoint.config, checkpoint.dataset, checkpoint.epoch)


def load_weights(model: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Give ``model`` the weights of ``checkpoint``. Raises ``CheckpointError`` if they do not fit."""
    try:
        model.load_state_dict(checkpoint.model)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not fit model {checkpoint.config.model}: {one_line(error)}") from error


def initialize(model: nn.Module, name: str, source: Path) -> None:
    """Give ``model`` the last weights of another run of the same network, whatever its method.

    Every parameter and buffer of the network must be there, with its shape; what belongs to the methods (in the
    binarizers) is taken over where both have it. Raises ``CheckpointError`` otherwise.
    """
    path = last_checkpoint(source)
    saved, own = read_checkpoint(path).model, model.state_dict()
    fits = {k for k, v in own.items() if k in saved and saved[k].shape == v.shape}
    odd = [k for k in {**own, **saved} if k not in fits and ".binarizer." not in f".{k}"]
    if odd:
        raise CheckpointError(f"{path} does not fit model {name}: {', '.join(odd[:3])} missing or of another shape")
    for key in sorted(fits):
        if not bool(torch.isfinite(saved[key]).all()):
            raise CheckpointError(f"{path}: {key} holds NaN or infinity; start from another checkpoint")
    model.load_state_dict({**own, **{k: saved[k] for k in fits}})


def last_checkpoint(run: Path) -> Path:
    """The file with the last weights of a run folder, or the checkpoint itself."""
    return run if run.is_file() else RunFolder(run).last
