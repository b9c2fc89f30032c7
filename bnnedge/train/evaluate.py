"""Scores of a run's best weights on a split of the data set that it was trained on."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console

from bnnedge.data.dataset import Split, load_dataset_as
from bnnedge.errors import CheckpointError
from bnnedge.tasks.measured import Measured
from bnnedge.train.device import find_device
from bnnedge.train.load import load_run
from bnnedge.train.metrics import evaluate
from bnnedge.train.resolve import path_or_none


def evaluate_run(
    run: Path,
    split: Split = "test",
    device: str = "auto",
    data_root: Path | None = None,
    console: Console | None = None,
    *,
    trust_code: bool = False,
) -> Measured:
    """Evaluate a run folder's ``best.ckpt``, or a checkpoint, on samples made as its preprocessing record says.

    ``data_root`` is where the data set lies now, None: where the run found it. ``console`` shows a bar if it is a
    terminal; ``trust_code`` is as for ``load_run``. Raises ``CheckpointError`` or ``DataError`` for what is missing or
    damaged.
    """
    loaded = load_run(run, trust_code=trust_code)
    dataset = load_dataset_as(loaded.dataset, data_root or path_or_none(loaded.config.data_root))
    where = find_device(device)
    tally = evaluate(loaded.model.to(where), dataset, split, where, loaded.method.predict, console=console)
    if not math.isfinite(tally.loss):
        raise CheckpointError(
            f"{run}: the network gives outputs that are NaN or infinite (loss {tally.loss}); its weights are broken, "
            "train again"
        )
    runtime = f"pytorch {where.type}"
    return Measured(runtime, loaded.dataset.name, tally.samples, dataset.task, tally.scores, tally.loss)
