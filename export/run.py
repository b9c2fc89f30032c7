"""Export of a run folder: its best weights, verified on images of its own test split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from bnnedge.data.dataset import load_dataset_as
from bnnedge.export.api import ExportReport, check_stem, export
from bnnedge.export.targets import TARGETS
from bnnedge.export.targets.target import Target
from bnnedge.train.load import load_run

VERIFY_IMAGES = 256
"""Test images that a run is verified with (all, if there are fewer)."""
CALIBRATION_IMAGES = 256
"""Training images that give the ranges of an int8 stem (all, if there are fewer)."""


def export_run(
    run: Path,
    target: str,
    output: Path | None = None,
    *,
    check: bool = True,
    stem: str = "fp32",
    trust_code: bool = False,
) -> ExportReport:
    """Write the network of ``run`` to ``output`` (default: RUN/MODEL with the target's ending).

    ``stem`` is as for ``export``, ``trust_code`` as for ``load_run``. For an int8 stem the report has the scores of
    file and checkpoint on the test split.

    Raises as ``load_run`` and ``export`` do; an existing file stays until the new one is verified.
    """
    written: type[Target] = TARGETS.load(target)
    check_stem(stem)
    loaded = load_run(run, trust_code=trust_code)
    info = loaded.dataset
    record = replace(info.preprocessing, layout=written.layout)
    name = loaded.config.model.rpartition(":")[2]
    folder = run if run.is_dir() else run.parent
    inputs = calibration = labelled = None
    if check or stem == "int8":
        root = Path(loaded.config.data_root) if loaded.config.data_root else None
        dataset = load_dataset_as(info, root)
        inputs = dataset.samples("test", torch.arange(min(VERIFY_IMAGES, dataset.size("test"))))[0].numpy()
        if stem == "int8":
            labelled = dataset.arrays("test", dataset.most_at_once)
            mixed = dataset.batches("train", CALIBRATION_IMAGES, torch.Generator().manual_seed(0))
            calibration = next(mixed)[0].numpy()
    return export(
        loaded.model,
        torch.zeros(2, *record.input_shape),
        output or folder / f"{name}{written.suffix}",
        target,
        verify_images=inputs,
        check=check,
        task=info.make_task(),
        metadata={
            "method": loaded.config.method,
            "model": loaded.config.model,
            **replace(info, preprocessing=record).to_metadata(),
        },
        stem=stem,
        calibration=calibration,
        input_range=record.input_range,
        labelled=labelled,
    )
