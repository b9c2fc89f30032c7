"""The checkpoint file: written whole or not at all, read without running code from it.

Format 3 is ``torch.save`` of a dictionary of plain values and tensors, see ``Checkpoint``. Format 2, which knew
classification alone, is still read.
"""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnnedge.config import RunConfig
from bnnedge.data.info import DatasetInfo
from bnnedge.errors import BnnedgeError, CheckpointError
from bnnedge.layers.convert import convert_again

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


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, tensors on the CPU.

    Raises ``CheckpointError`` if it is missing, damaged or of another version.
    """
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path} does not exist; expected a run folder made by `train`") from error
    except Exception as error:  # a damaged file can raise anything
        reason = str(error).split("\n")[0].split(". ")[0][:120]
        raise CheckpointError(f"checkpoint {path} is damaged or no checkpoint of bnnedge ({reason})") from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of bnnedge")
    version = contents.get("version")
    if not isinstance(version, int) or not OLDEST_VERSION <= version <= FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {version!r}, this bnnedge reads versions {OLDEST_VERSION} to "
            f"{FORMAT_VERSION}; train again, or use the bnnedge that wrote it"
        )
    contents.setdefault("ema", {})  # early files of version 2 have none
    contents.setdefault("binary_layers", None)
    if version == 2:
        contents["best_score"] = contents.get("best_val_top1")
    names = [f.name for f in dataclasses.fields(Checkpoint)]
    missing = [name for name in names if name not in contents]
    if missing:
        raise CheckpointError(f"checkpoint {path} lacks {', '.join(missing)}")
    try:
        contents["config"] = RunConfig.from_dict(contents["config"])
        contents["dataset"] = DatasetInfo.from_dict(contents["dataset"])
    except BnnedgeError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from error
    return Checkpoint(**{name: contents[name] for name in names})
