"""Export of a run folder: its best weights, verified on images of its own test split."""

from __future__ import annotations

from pathlib import Path

import torch

from bnnedge.data.dataset import load_dataset
from bnnedge.export.api import ExportReport, export
from bnnedge.export.targets import TARGETS
from bnnedge.train.run import load_run

VERIFY_IMAGES = 256
"""Test images that a run is verified with (all, if there are fewer)."""


def export_run(run: Path, target: str, output: Path | None = None, *, check: bool = True) -> ExportReport:
    """Write the network of ``run`` to ``output`` (default: RUN/MODEL with the target's ending).

    Raises as ``load_run`` and ``export`` do; an existing file stays until the new one is verified.
    """
    suffix = TARGETS.load(target).suffix
    loaded = load_run(run)
    info = loaded.dataset
    name = loaded.config.model.rpartition(":")[2]
    folder = run if run.is_dir() else run.parent
    shape = (info.in_channels, info.image_size, info.image_size)
    images = None
    if check:
        root = Path(loaded.config.data_root) if loaded.config.data_root else None
        images = load_dataset(info.name, info.image_size, root).arrays("test")[0][:VERIFY_IMAGES]
    return export(
        loaded.model,
        torch.zeros(2, *shape),
        output or folder / f"{name}{suffix}",
        target,
        verify_images=images,
        check=check,
        metadata={
            "method": loaded.config.method,
            "model": loaded.config.model,
            "num_classes": info.num_classes,
            "dataset": info.to_dict(),
        },
    )
