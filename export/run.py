"""Export of a run folder: its best weights, verified on images of its own test split."""

from __future__ import annotations

from pathlib import Path

import torch

from bnnedge.data.dataset import DatasetInfo, load_dataset
from bnnedge.export.api import ExportReport, check_stem, export
from bnnedge.export.targets import TARGETS
from bnnedge.train.run import load_run

VERIFY_IMAGES = 256
"""Test images that a run is verified with (all, if there are fewer)."""
CALIBRATION_IMAGES = 256
"""Training images that give the ranges of an int8 stem (all, if there are fewer)."""


def export_run(
    run: Path, target: str, output: Path | None = None, *, check: bool = True, stem: str = "fp32"
) -> ExportReport:
    """Write the network of ``run`` to ``output`` (default: RUN/MODEL with the target's ending).

    ``stem`` as for ``export``; for an int8 stem the report has both accuracies on the test split.

    Raises as ``load_run`` and ``export`` do; an existing file stays until the new one is verified.
    """
    suffix = TARGETS.load(target).suffix
    check_stem(stem)
    loaded = load_run(run)
    info = loaded.dataset
    name = loaded.config.model.rpartition(":")[2]
    folder = run if run.is_dir() else run.parent
    shape = (info.in_channels, info.image_size, info.image_size)
    images = calibration = labelled = None
    if check or stem == "int8":
        root = Path(loaded.config.data_root) if loaded.config.data_root else None
        dataset = load_dataset(info.name, info.image_size, root)
        images = dataset.samples("test", torch.arange(min(VERIFY_IMAGES, dataset.size("test"))))[0].numpy()
        if stem == "int8":
            labelled = dataset.arrays("test", dataset.most_at_once)
            mixed = dataset.batches("train", CALIBRATION_IMAGES, torch.Generator().manual_seed(0))
            calibration = next(mixed)[0].numpy()
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
        stem=stem,
        calibration=calibration,
        input_range=pixel_range(info),
        labelled=labelled,
    )


def pixel_range(info: DatasetInfo) -> tuple[float, float]:
    """The input of the network for black and for white, at its extremes over the channels."""
    ends = [((0 - mean) / std, (1 - mean) / std) for mean, std in zip(info.mean, info.std, strict=True)]
    return min(black for black, _ in ends), max(white for _, white in ends)
