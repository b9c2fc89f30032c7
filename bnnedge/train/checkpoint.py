"""The checkpoint file: written whole or not at all, read without running code from it.

Format 3 is ``torch.save`` of a dictionary of plain values and tensors, see ``Checkpoint``. Format 2, which knew
classification alone, is still read. What a file holds is checked here, once, before anything uses it: the archive with
its checksums in ``archive.py``, the random generators' states in ``rng.py``, the optimizers' states where the
optimizers are known, in ``optimizer_state.py``, and everything else below.
"""

from __future__ import annotations

import dataclasses
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from bnnedge.config import MOST_EPOCHS, RunConfig
from bnnedge.data.info import DatasetInfo
from bnnedge.errors import BnnedgeError, CheckpointError, printable
from bnnedge.layers.convert import convert_again
from bnnedge.schema import check, check_plain
from bnnedge.train.archive import read_archive
from bnnedge.train.rng import check_rng_state

FORMAT = "bnnedge-checkpoint"
FORMAT_VERSION = 3
OLDEST_VERSION = 2


@dataclass
class Checkpoint:
    """The state of a run at the end of an epoch."""

    config: RunConfig
    """The resolved settings of the run."""
    dataset: DatasetInfo
    epoch: int
    """Number of finished epochs."""
    best_epoch: int
    """The epoch, counted from 1, whose weights are kept as the best ones."""
    best_score: float | None
    """The task's first score of those weights on the split that chooses; None if no split does."""
    model: dict[str, Tensor]
    """State dict of the model with the method attached; with an EMA, of its averages."""
    optimizers: dict[str, Any]
    """State dicts of the optimizers of the phase that ``epoch`` belongs to, by the names of ``train/assign.py``."""
    rng: dict[str, Any]
    """The state of the random generators, see ``bnnedge/train/rng.py``."""
    ema: dict[str, Any] = field(default_factory=dict)
    """If weights are averaged: the number of ``steps``, and the state dict ``trained`` that training goes on with."""
    binary_layers: list[str] | None = None
    """Module paths of the binary layers; None in a file of bnnedge 0.1."""

    def convert(self, model: nn.Module) -> nn.Module:
        """Make those layers of a user's ``model`` binary that were so in the run."""
        return convert_again(model, self.binary_layers)

    def to_bytes(self) -> bytes:
        """The file's contents."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields |= {"config": self.config.to_dict(), "dataset": self.dataset.to_dict()}
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "version": FORMAT_VERSION, **fields}, buffer)
        return buffer.getvalue()


@dataclass(frozen=True)
class _Progress:
    """The numbers of a checkpoint, as its schema."""

    epoch: Annotated[int, Field(ge=1, le=MOST_EPOCHS)]
    best_epoch: Annotated[int, Field(ge=1, le=MOST_EPOCHS)]
    best_score: float | None
    steps: Annotated[int, Field(ge=0)]
    """Steps of the average of the weights; 0 if there is none."""
    binary_layers: list[str] | None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, tensors on the CPU.

    Raises ``CheckpointError`` if it is missing, damaged or of another version.
    """
    if not path.exists():
        raise CheckpointError(f"checkpoint {path} does not exist; expected a run folder made by `train`")
    contents = read_archive(path)
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of bnnedge")
    version = contents.get("version")
    if type(version) is not int or not OLDEST_VERSION <= version <= FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {printable(repr(version), 60)}, this bnnedge reads versions "
            f"{OLDEST_VERSION} to {FORMAT_VERSION}; train again, or use the bnnedge that wrote it"
        )
    contents.setdefault("ema", {})  # early files of version 2 have none
    contents.setdefault("binary_layers", None)
    if version == 2:
        contents["best_score"] = contents.get("best_val_top1")
    names = [f.name for f in dataclasses.fields(Checkpoint)]
    missing = [name for name in names if name not in contents]
    if missing:
        raise CheckpointError(f"checkpoint {path} lacks {', '.join(missing)}")
    found = {name: contents[name] for name in names}
    try:
        return _checked(found, f"checkpoint {path}")
    except BnnedgeError as error:
        text = str(error)
        raise CheckpointError(text if str(path) in text else f"checkpoint {path}: {text}") from error


def _checked(found: dict[str, Any], what: str) -> Checkpoint:
    check_plain(found, what, CheckpointError, leaves=(Tensor,))
    for name in ("config", "dataset", "model", "optimizers", "rng", "ema"):
        if not isinstance(found[name], dict):
            raise CheckpointError(f"{what}: {name} should be a mapping, but is {printable(repr(found[name]), 60)}")
    config = RunConfig.from_dict(found["config"])
    ema = found["ema"]
    if bool(ema) != (config.ema is not None) or (ema and set(ema) != {"steps", "trained"}):
        raise CheckpointError(f"{what}: the average of the weights (ema) is not that of the settings")
    numbers = {name: found[name] for name in ("epoch", "best_epoch", "best_score", "binary_layers")}
    progress = check({**numbers, "steps": ema.get("steps", 0)}, _Progress, what, CheckpointError)
    if not progress.best_epoch <= progress.epoch <= config.epochs:
        raise CheckpointError(
            f"{what}: expected best_epoch <= epoch <= epochs, found {progress.best_epoch}, {progress.epoch} and "
            f"{config.epochs}"
        )
    for name, weights in (("model", found["model"]), ("ema", ema.get("trained", {}))):
        _check_weights(weights, f"{what}: {name}")
    check_tensors(found["optimizers"], f"{what}: optimizers")
    check_rng_state(found["rng"], f"{what}: rng")
    numbers["best_score"] = progress.best_score
    return Checkpoint(**{**found, **numbers, "config": config, "dataset": DatasetInfo.from_dict(found["dataset"])})


def _check_weights(weights: Any, what: str) -> None:
    if not isinstance(weights, dict):
        raise CheckpointError(f"{what} should map names to tensors, but is {printable(repr(weights), 60)}")
    for name, weight in weights.items():
        if not isinstance(name, str) or not isinstance(weight, Tensor):
            found = f"{printable(repr(name), 60)}: {type(weight).__name__}"
            raise CheckpointError(f"{what}: expected tensors by name, found {found}")
    check_tensors(weights, what)


def check_tensors(value: Any, what: str) -> None:
    """Raise ``CheckpointError`` for a tensor in nested mappings and lists whose elements are not all stored."""
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for found in below:
        check_tensors(found, what)
    if isinstance(value, Tensor):
        whole = type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided
        whole = whole and value.device.type == "cpu" and not value.is_quantized
        if not whole or math.prod(value.shape) * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"{what}: expected tensors that hold each of their elements, found another one")
