"""``bnnedge bench``: from file names to rows. Whatever can be wrong is looked for before anything is measured."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from bnnedge.benchmarks.devices import DEVICES
from bnnedge.benchmarks.devices.device import BenchmarkInput, BenchmarkSettings, Device, ModelFile
from bnnedge.benchmarks.rows import BenchmarkRow, append_rows, check_appendable
from bnnedge.data.info import DatasetInfo
from bnnedge.data.preprocessing import Preprocessing
from bnnedge.errors import BenchmarkError, BnnedgeError, BnnedgeWarning, DataError, printable
from bnnedge.export.runtimes.choose import choose_runtime
from bnnedge.export.targets.target import Target, read_file, target_of
from bnnedge.progress import Bar

if TYPE_CHECKING:
    from bnnedge.data.source import Source

RANDOM = "random"
"""Stands for normal noise where the name of a data set is asked for; noise gives times and no scores."""
STOCK_RUNTIMES = ("onnxruntime", "litert")
"""The runtimes in which users without binary networks run float files of each format."""


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
    trust_code: bool = False,
    console: Console | None = None,
) -> list[BenchmarkRow]:
    """Measure exported files against each other; one row a file, in order.

    Each file normalises the pixels by its own preprocessing record and is scored by its own task, so files that differ
    in these can be measured together; they must take the same input shape and the same pixels.

    Args:
        files: paths of exported files, of any format.
        runtime: a name in RUNTIMES, or ``auto``: for each file the first one of its format that is available.
        threads: threads of the runtimes.
        warmup: runs of each file before the measured ones.
        runs: measured runs of each file.
        data: the data set whose test split is input and gives the scores, ``random`` for noise, or None: the data set
            that the first file was trained on if it is at hand, else noise.
        baseline: add the float32 twin of the first file's network, as ONNX and as TFLite.
        json_path: a JSON lines file that rows are appended to.
        device: as ``open_device`` takes it. Files and data sets are read here, also for a device elsewhere.
        data_root: the folder of the data sets.
        images: number of samples of the test split, evenly spaced, or None: as many as 1 GiB holds.
        trust_code: build the float32 twin also where that runs a Python file which the measured file names.
        console: where progress and notes go; the standard error if left out.

    Raises a ``BnnedgeError`` for a file that is missing, damaged or of an unknown kind, a device or runtime that is
    not available, and data that does not fit the files.
    """
    console = console or Console(stderr=True)
    settings = BenchmarkSettings(threads=threads, warmup=warmup, runs=runs)
    if not files:
        raise BenchmarkError("expected at least one file to measure, found none; name an exported file")
    with open_device(device) as machine:
        models = [read_model_file(Path(file), runtime, machine) for file in files]
        if baseline:
            models += float_twins(models[0], machine, trust_code)
        _check_same_input(models)
        if json_path is not None:
            check_appendable(json_path)
        given = benchmark_input(models, data, data_root, images, console)
        with Bar(console) as bar:
            rows = machine.measure(models, given, settings, bar)
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
    model = ModelFile(printable(str(path), most=4096), file.data, chosen, file.metadata)
    model.check_metadata()
    return model


def float_twins(model: ModelFile, device: Device, trust_code: bool = False) -> list[ModelFile]:
    """The network of ``model`` with ordinary float32 layers and arbitrary weights, in each format.

    A twin runs in the stock runtime of its format: it shows what the user would have without binarizing. A file of a
    network that has no name here has none, which a warning says.
    """
    from bnnedge.export.float_twin import float_twin_files

    twins: list[ModelFile] = []
    try:
        files = float_twin_files(model.metadata, model.label, trust_code=trust_code)
    except BenchmarkError as error:
        warnings.warn(f"{error}; measured without it", BnnedgeWarning, stacklevel=2)
        return twins
    for label, content in files:
        target = target_of(Path(label))
        runtime = choose_runtime(target.runtimes, _stock_runtime(target), label, device.unavailable)
        twins.append(ModelFile(label, content, runtime, target.read_metadata(content), trained=False))
    return twins


def _stock_runtime(target: Target) -> str:
    return next(name for name in target.runtimes if name in STOCK_RUNTIMES)


def benchmark_input(
    models: Sequence[ModelFile], data: str | None, data_root: Path | None, images: int | None, console: Console
) -> BenchmarkInput:
    """The input of ``models``, as ``bench`` describes ``data`` and ``images``."""
    own = models[0].description
    name = data or (None if own is None else own.info.name)
    if name is None or name == RANDOM:
        return random_input(models[0].input_shape)
    try:
        return _test_split(name, models, data_root, images, console)
    except BnnedgeError as error:
        if data is not None:
            raise
        said = printable(f"no scores, latency on random input: {error}", most=1000)
        console.print(said, markup=False, soft_wrap=True)
        return random_input(models[0].input_shape)


def random_input(shape: Sequence[int], count: int = 16, seed: int = 0) -> BenchmarkInput:
    """``count`` inputs [C, H, W] of standard normal noise, which a timer cannot tell from normalised images."""
    images = np.random.default_rng(seed).standard_normal((count, *shape), dtype=np.float32)
    return BenchmarkInput("random normal", images)


def _test_split(
    name: str, models: Sequence[ModelFile], data_root: Path | None, most: int | None, console: Console
) -> BenchmarkInput:
    # Imported here: it brings torch, which a device that only times files can do without.
    from bnnedge.data import DATASETS
    from bnnedge.data.dataset import Dataset, prepare

    source: Source = DATASETS.load(name)(data_root)
    described = [(model, own.info) for model in models if (own := model.description) is not None]
    for model, info in described:
        _check_fits(model, info, source)
    _check_same_geometry(described)
    # What the first file says holds for those that say nothing; the data set itself knows if none says anything.
    if described:
        info = dataclasses.replace(described[0][1], name=name)
    else:
        info = prepare(source, _image_size(models[0])).info
    test = Dataset(info, {"test": source.test.fit(info.preprocessing)})
    pixels, targets = test.raw_arrays("test", most or test.most_at_once)
    if most is None and len(pixels) < test.size("test"):
        console.print(f"scores on {len(pixels)} of {test.size('test')} test samples; --images takes another number")
    data = BenchmarkInput(f"{name} test", pixels, targets, info)
    for model in models:
        inputs, _ = data.samples(model, slice(1))
        if inputs.shape[1:] != model.input_shape:
            raise DataError(
                f"{model.label} takes inputs of {list(model.input_shape)}, those of {name} are "
                f"{list(inputs.shape[1:])}; name another data set, or --data {RANDOM}"
            )
    return data


def _image_size(model: ModelFile) -> tuple[int, int]:
    if len(model.input_shape) != 3:
        raise DataError(f"{model.label} takes inputs of {list(model.input_shape)}, no images; use --data {RANDOM}")
    return model.input_shape[1], model.input_shape[2]


def _check_fits(model: ModelFile, info: DatasetInfo, source: Source) -> None:
    """Raise ``DataError`` if ``model`` was trained for another task, for other channels or for other classes."""
    # The data set that a file was trained on fits any task that it was trained for.
    if info.name != source.name and info.task != source.task:
        raise DataError(f"{model.label}: trained for task {info.task}, {source.name} is made for {source.task}")
    channels = info.preprocessing.channels
    if channels != source.channels:
        raise DataError(f"{model.label}: takes {channels} channels, {source.name} has {source.channels}")
    if info.classes != source.classes:
        raise DataError(
            f"{model.label}: its {len(info.classes)} classes ({_some(info.classes)}) are not the {len(source.classes)} "
            f"of {source.name} ({_some(source.classes)})"
        )


def _some(classes: Sequence[str]) -> str:
    return ", ".join(classes[:3]) + (", .." if len(classes) > 3 else "") or "none"


def _check_same_geometry(described: Sequence[tuple[ModelFile, DatasetInfo]]) -> None:
    """Raise ``BenchmarkError`` unless all records read the same pixels of a stored picture."""
    for model, info in described[1:]:
        first, record = described[0][1].preprocessing, info.preprocessing
        if record.geometry != first.geometry:
            raise BenchmarkError(
                f"{model.label} reads pictures at {_geometry(record)}, {described[0][0].label} at {_geometry(first)}; "
                "measure files of one size, interpolation and crop together"
            )


def _geometry(record: Preprocessing) -> str:
    crop = "whole" if record.crop is None else f"central {record.crop:g}"
    return f"{record.height}x{record.width} ({record.resize}, {crop})"


def _check_same_input(models: Sequence[ModelFile]) -> None:
    for model in models[1:]:
        if model.input_shape != models[0].input_shape:
            raise BenchmarkError(
                f"{model.label} takes inputs of {list(model.input_shape)}, {models[0].label} of "
                f"{list(models[0].input_shape)}; measure files of one input shape together"
            )
