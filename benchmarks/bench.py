"""``bnnedge bench``: from file names to rows. What can be wrong is looked for before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bnnedge.benchmarks.devices import DEVICES
from bnnedge.benchmarks.devices.device import BenchmarkInput, BenchmarkPlan, Device, ModelFile
from bnnedge.benchmarks.result import BenchmarkRow, append_rows, check_appendable
from bnnedge.errors import BenchmarkError, BnnedgeError, DataError
from bnnedge.export.runtimes.choose import choose_runtime
from bnnedge.export.targets.target import Target, read_file, target_of

RANDOM = "random"
"""In place of a data set's name: normal noise, timing only."""
STOCK_RUNTIMES = ("onnxruntime", "litert")
"""What runs the float files of each format where nobody thinks of binary ones."""


def bench(
    files: Sequence[str | Path],
    runtime: str = "auto",
    threads: int = 1,
    warmup: int = 10,
    runs: int = 100,
    data: str | None = None,
    baseline: bool = False,
    json_path: Path | None = None,
    device: str = "local",
    data_root: Path | None = None,
    images: int | None = None,
    console: Console | None = None,
) -> list[BenchmarkRow]:
    """Measure exported files against each other; one row a file, in order.

    ``runtime`` is a name in RUNTIMES, or ``auto``: for each file the first one of its format that is available.
    ``data`` is the data set for input and accuracy, ``random`` for noise, or None: the one that the first file was
    trained on if it is at hand, else noise. ``baseline`` adds the float32 twin of the first file's network, as ONNX
    and as TFLite. Rows are appended to ``json_path`` if given. ``device`` is as ``open_device`` takes it. Files and
    data sets are read here, also for a device elsewhere; ``data_root`` is where data sets lie. ``images`` of the test
    split are taken, evenly spaced, or None: as many as 1 GiB holds.

    Raises a ``BnnedgeError`` for a file that is missing, damaged or of an unknown kind, a device or runtime that is
    not available, and data that does not fit the files.
    """
    console = console or Console(stderr=True)
    plan = BenchmarkPlan(threads=threads, warmup=warmup, runs=runs)
    if not files:
        raise BenchmarkError("expected at least one file to measure, found none; name an exported file")
    with open_device(device) as machine:
        models = [read_model_file(Path(file), runtime, machine) for file in files]
        if baseline:
            models += float_twins(models[0], machine)
        _check_same_input(models)
        if json_path is not None:
            check_appendable(json_path)
        rows = machine.measure(models, benchmark_input(models, data, data_root, images, console), plan, console)
    if json_path is not None:
        append_rows(json_path, rows)
    return rows


def open_device(name: str) -> Device:
    """The device of ``NAME`` or ``NAME://ADDRESS``, NAME in DEVICES. Raises as ``Device.open`` does."""
    kind, _, address = name.partition("://")
    device: Device = DEVICES.load(kind).open(address)
    return device


def read_model_file(path: Path, runtime: str, device: Device) -> ModelFile:
    """Load ``path`` and choose its runtime. Raises a ``BnnedgeError`` that names the file."""
    file = read_file(path)
    chosen = choose_runtime(file.target.runtimes, runtime, str(path), device.unavailable)
    model = ModelFile(str(path), file.data, chosen, file.metadata)
    model.check_input_shape()
    return model


def float_twins(model: ModelFile, device: Device) -> list[ModelFile]:
    """The network of ``model`` with ordinary float32 layers and arbitrary weights, in each format.

    A twin runs in the stock runtime of its format: it shows what the user would have without binarizing.
    """
    from bnnedge.export.float_twin import float_twin_files

    if missing := [key for key in ("model", "num_classes") if model.metadata.get(key) is None]:
        raise BenchmarkError(f"{model.label}: a float twin needs {' and '.join(missing)} in the file's metadata")
    twins = []
    for label, content in float_twin_files(model.metadata):
        target = target_of(Path(label))
        runtime = choose_runtime(target.runtimes, _stock_runtime(target), label, device.unavailable)
        twins.append(ModelFile(label, content, runtime, target.read_metadata(content), trained=False))
    return twins


def _stock_runtime(target: Target) -> str:
    return next(name for name in target.runtimes if name in STOCK_RUNTIMES)


def benchmark_input(
    models: Sequence[ModelFile], data: str | None, data_root: Path | None, images: int | None, console: Console
) -> BenchmarkInput:
    """The images for ``models``, as ``bench`` describes ``data`` and ``images``."""
    named = data or (models[0].metadata.get("dataset") or {}).get("name")
    if named is None or named == RANDOM:
        return random_input(models[0].input_shape)
    try:
        return _test_split(str(named), models, data_root, images, console)
    except BnnedgeError as error:
        if data is not None:
            raise
        console.print(f"no accuracy, latency on random input: {error}", markup=False)
        return random_input(models[0].input_shape)


def random_input(shape: Sequence[int], count: int = 16, seed: int = 0) -> BenchmarkInput:
    """``count`` images [C, H, W] of standard normal noise, which is what normalised images look like to a timer."""
    images = np.random.default_rng(seed).standard_normal((count, *shape), dtype=np.float32)
    return BenchmarkInput("random normal", images)


def _test_split(
    name: str, models: Sequence[ModelFile], data_root: Path | None, most: int | None, console: Console
) -> BenchmarkInput:
    # Imported here: it brings torch, which a device that only times files can do without.
    from bnnedge.data.dataset import load_dataset

    shape = models[0].input_shape
    dataset = load_dataset(name, image_size=shape[-1], data_root=data_root)
    info = dataset.info
    if (found := (info.in_channels, info.image_size, info.image_size)) != shape:
        raise DataError(
            f"{models[0].label} takes images of {list(shape)}, those of {name} are {list(found)}; "
            f"name another data set, or --data {RANDOM}"
        )
    for model in models:
        _check_same_data(model, info.to_dict())
    images, labels = dataset.arrays("test", most or dataset.most_at_once)
    if most is None and len(images) < dataset.size("test"):
        console.print(f"accuracy on {len(images)} of {dataset.size('test')} test images; --images takes another number")
    return BenchmarkInput(f"{name} test", images, labels)


def _check_same_data(model: ModelFile, info: Mapping[str, Any]) -> None:
    """Raise ``DataError`` if ``model`` was trained for other classes, or for pixels normalised in another way."""
    trained = model.metadata.get("dataset") or {}
    for field in ("num_classes", "class_names"):
        found = trained.get(field)
        if found is not None and found != info[field]:
            raise DataError(f"{model.label}: {field} is {found}, that of {info['name']} is {info[field]}")
    for field in ("mean", "std"):
        found = trained.get(field)
        # Both are of pixels in [0, 1]; a quarter of an 8-bit step is beyond any rounding and below any effect.
        if found is not None and not np.allclose(found, info[field], rtol=0, atol=0.25 / 255):
            raise DataError(f"{model.label}: trained with {field} {found}, {info['name']} now has {info[field]}")


def _check_same_input(models: Sequence[ModelFile]) -> None:
    for model in models[1:]:
        if model.input_shape != models[0].input_shape:
            raise BenchmarkError(
                f"{model.label} takes images of {list(model.input_shape)}, {models[0].label} of "
                f"{list(models[0].input_shape)}; measure files of one input shape together"
            )
