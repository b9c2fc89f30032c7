"""The checkpoint file: written whole or not at all, read without running code from it.

Format 2 is ``torch.save`` of a dictionary of plain values and tensors, see ``Checkpoint``.
"""

from __future__ import annotations

import dataclasses
import io
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnnedge.config import RunConfig
from bnnedge.data.dataset import DatasetInfo
from bnnedge.errors import BnnedgeError, CheckpointError

FORMAT = "bnnedge-checkpoint"
FORMAT_VERSION = 2


@dataclass
class Checkpoint:
    """The state of a run at the end of an epoch."""

    config: RunConfig
    """Resolved."""
    dataset: DatasetInfo
    epoch: int
    """Number of finished epochs."""
    best_epoch: int
    """The epoch, counted from 1, whose weights reached the best validation top-1."""
    best_val_top1: float
    """From 0 to 1."""
    model: dict[str, Tensor]
    """State dict of the model with the method attached; with an EMA, of its averages."""
    optimizers: dict[str, Any]
    """State dicts by the names of ``bnnedge/train/assign.py``, of the phase that ``epoch`` belongs to."""
    rng: dict[str, Any]
    """See ``rng_state``."""
    ema: dict[str, Any] = field(default_factory=dict)
    """With an EMA, the number of its ``steps`` and the state dict ``trained`` that training goes on with."""

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
    if contents.get("version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {contents.get('version')!r}, this bnnedge reads version {FORMAT_VERSION}"
        )
    contents.setdefault("ema", {})  # files from before there was one
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


def rng_state() -> dict[str, Any]:
    """State of the global generators of PyTorch (CPU and this GPU), NumPy and Python, as plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        "numpy": [str(name), [int(k) for k in keys], int(position), int(has_gauss), float(gauss)],
        "python": list(random.getstate()),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Inverse of ``rng_state``. A GPU's state is left alone if none was saved."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
