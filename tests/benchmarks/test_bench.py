from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from bnnedge.benchmarks.bench import bench, open_device, random_input
from bnnedge.benchmarks.devices import DEVICES
from bnnedge.benchmarks.devices.device import BenchmarkInput, BenchmarkSettings, Device, ModelFile
from bnnedge.benchmarks.devices.local import LocalDevice
from bnnedge.benchmarks.rows import BenchmarkRow, read_rows
from bnnedge.data.dataset import Dataset
from bnnedge.errors import (
    BenchmarkError,
    BnnedgeError,
    DataError,
    ExportError,
    MissingDependencyError,
    UnknownNameError,
)
from bnnedge.export.api import export as export_model
from bnnedge.export.evaluate import choose_runtime
from bnnedge.export.graph import Graph
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.targets.to_lce import LceTarget
from bnnedge.export.targets.to_onnx import OnnxTarget
from bnnedge.methods import METHODS
from bnnedge.models.create import create_model

Classifier = tuple[Graph, NDArray[np.float64]]
QUICK: dict[str, Any] = {"warmup": 1, "runs": 5}


def write_onnx(graph: Graph, path: Path, **metadata: Any) -> Path:
    path.write_bytes(OnnxTarget().write(replace(graph, metadata={**graph.metadata, **metadata})))
    return path


@pytest.fixture
def onnx_file(tmp_path: Path, digits_classifier: Classifier) -> Path:
    return write_onnx(digits_classifier[0], tmp_path / "digits.onnx")


def missing_runtime(name: str) -> str:
    """Why ``name`` cannot be used here; empty if it can."""
    why: str | None = RUNTIMES.load(name).unavailable()
    return why or ""


@pytest.fixture
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("measured before everything was checked")

    monkeypatch.setattr(LocalDevice, "measure", refuse)


def expected_top1(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Accuracy of the float64 outputs, if no rounding to float32 can change it."""
    best, second = np.sort(scores, axis=1)[:, [-1, -2]].T
    # 65 products of at most 10 in size, each rounded to float32: far below 65 * 10 * 2**-23 < 1e-4.
    assert (best - second).min() > 1e-4
    return float((scores.argmax(axis=1) == labels).mean())


def test_rows_of_a_real_file(tmp_path: Path, onnx_file: Path, digits: Dataset, digits_classifier: Classifier) -> None:
    rows = bench([onnx_file, str(onnx_file)], runtime="onnxruntime", json_path=tmp_path / "rows.jsonl", **QUICK)
    assert [row.file for row in rows] == [str(onnx_file)] * 2
    for row in rows:
        assert (row.runtime, row.device, row.threads, row.warmup, row.runs) == ("onnxruntime", "local", 1, 1, 5)
        assert row.input == "digits test"
        assert row.top1 == expected_top1(digits_classifier[1], digits.arrays("test")[1])
        assert row.top1 > 0.9
        assert row.top1_images == digits.size("test")
        assert row.file_bytes == onnx_file.stat().st_size
        assert row.metadata == digits_classifier[0].metadata
        assert row.images_per_s == 1000 / row.p50_ms
        assert row.environment["versions"]["bnnedge"]
    assert read_rows(tmp_path / "rows.jsonl") == rows
    bench([onnx_file], json_path=tmp_path / "rows.jsonl", data="random", **QUICK)
    assert len(read_rows(tmp_path / "rows.jsonl")) == 3


@pytest.mark.parametrize("runtime", ["auto", *LceTarget.runtimes])
def test_rows_of_a_tflite_file(tmp_path: Path, digits: Dataset, digits_classifier: Classifier, runtime: str) -> None:
    expected = next(name for name in LceTarget.runtimes if not missing_runtime(name)) if runtime == "auto" else runtime
    if why := missing_runtime(expected):
        pytest.skip(why)
    path = tmp_path / "digits.tflite"
    path.write_bytes(LceTarget().write(digits_classifier[0]))
    (row,) = bench([path], runtime=runtime, **QUICK)
    assert (row.runtime, row.runtime_version) == (expected, RUNTIMES.load(expected).version())
    assert row.top1 == expected_top1(digits_classifier[1], digits.arrays("test")[1])
    assert row.metadata == digits_classifier[0].metadata


@pytest.mark.skipif(bool(missing_runtime("litert")), reason=missing_runtime("litert"))
def test_a_binary_network_beside_its_float_twins(tmp_path: Path, digits: Dataset) -> None:
    name = "resnet20_1w1a"
    torch.manual_seed(0)
    model = create_model(name, num_classes=10, in_channels=1, image_size=8)
    method = METHODS.load("ste")
    method(method.Options()).attach(model)
    metadata = {"model": name, "method": "ste", "num_classes": 10, "dataset": digits.info.to_dict()}
    export_model(model, torch.zeros(1, 1, 8, 8), tmp_path / "net.onnx", check=False, metadata=metadata)
    binary, *twins = bench([tmp_path / "net.onnx"], baseline=True, **QUICK)
    assert binary.top1 is not None
    assert [(Path(twin.file).suffix, twin.runtime) for twin in twins] == [
        (".onnx", "onnxruntime"),
        (".tflite", "litert"),
    ]
    for twin in twins:
        assert (twin.top1, twin.top1_images, twin.input) == (None, 0, "digits test")
        assert twin.metadata["method"] == "float32 twin"
        # 1 bit for 32, and whatever of the network stays float: it is the same in both.
        assert 10 * binary.file_bytes < twin.file_bytes


def test_random_input_has_no_accuracy(onnx_file: Path) -> None:
    (row,) = bench([onnx_file], data="random", **QUICK)
    assert (row.input, row.top1, row.top1_images) == ("random normal", None, 0)


def test_random_input_is_normal_and_the_same_every_time() -> None:
    images = random_input([3, 31, 33], count=4).images
    assert images.shape == (4, 3, 31, 33)
    assert images.dtype == np.float32
    assert np.array_equal(images, random_input([3, 31, 33], count=4).images)
    # 12,276 samples: the mean's standard error is 0.009, the deviation's 0.0064; five of them.
    assert abs(images.mean()) < 0.045
    assert abs(images.std() - 1) < 0.032


def test_data_that_is_not_at_hand_costs_the_accuracy_and_says_so(tmp_path: Path, digits_classifier: Classifier) -> None:
    path = write_onnx(digits_classifier[0], tmp_path / "a.onnx", dataset={"name": "cifar10"})
    console = Console(file=io.StringIO(), width=1000)
    (row,) = bench([path], data_root=tmp_path, console=console, **QUICK)
    assert (row.input, row.top1) == ("random normal", None)
    assert isinstance(console.file, io.StringIO)
    assert "no accuracy, latency on random input: " in console.file.getvalue()
    with pytest.raises(DataError):
        bench([path], data="cifar10", data_root=tmp_path, console=console, **QUICK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": {"class_names": ["cat", "dog"]}}, "class_names is"),
        ({"dataset": {"num_classes": 11}}, "num_classes is 11, that of digits is 10"),
        ({"dataset": {"mean": [0.9]}}, r"trained with mean \[0.9\]"),
        ({"dataset": {"std": [0.9]}}, r"trained with std \[0.9\]"),
        ({"input_shape": [3, 8, 8]}, r"takes images of \[3, 8, 8\], those of digits are \[1, 8, 8\]"),
    ],
)
@pytest.mark.usefixtures("nothing_is_measured")
def test_data_that_does_not_fit_the_file(
    tmp_path: Path, digits_classifier: Classifier, changes: dict[str, Any], message: str
) -> None:
    path = write_onnx(digits_classifier[0], tmp_path / "a.onnx", **changes)
    with pytest.raises(DataError, match=message):
        bench([path], data="digits")


def corrupt(path: Path) -> Path:
    path.write_bytes(b"\x08\x08" + bytes(range(256)))
    return path


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("missing.onnx", ExportError, r"missing\.onnx cannot be read .No such file"),
        ("corrupt.onnx", ExportError, r"corrupt\.onnx: "),
        ("net.pth", ExportError, r"net\.pth: expected a file ending in \.onnx or .*found \.pth"),
        ("net", ExportError, "found no ending"),
    ],
)
@pytest.mark.usefixtures("nothing_is_measured")
def test_files_that_cannot_be_measured(
    tmp_path: Path, onnx_file: Path, name: str, kind: type[BnnedgeError], message: str
) -> None:
    corrupt(tmp_path / "corrupt.onnx")
    with pytest.raises(kind, match=message) as caught:
        bench([onnx_file, tmp_path / name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"runtime": "onnxrunning"}, UnknownNameError, "unknown runtime 'onnxrunning'"),
        ({"runtime": "litert"}, BenchmarkError, r"litert cannot run such files; use one of: onnxruntime"),
        ({"threads": 0}, BenchmarkError, "expected threads >= 1, found 0"),
        ({"runs": 0}, BenchmarkError, "expected runs >= 1, found 0"),
        ({"warmup": -1}, BenchmarkError, "expected warmup >= 0, found -1"),
        ({"data": "imagenet-22k"}, UnknownNameError, "unknown dataset 'imagenet-22k'"),
        ({"device": "toaster"}, UnknownNameError, "unknown device 'toaster'; known: local"),
    ],
)
@pytest.mark.usefixtures("nothing_is_measured")
def test_settings_that_cannot_be(
    onnx_file: Path, arguments: dict[str, Any], kind: type[BnnedgeError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        bench([onnx_file], **arguments)


@pytest.mark.usefixtures("nothing_is_measured")
def test_no_files() -> None:
    with pytest.raises(BenchmarkError, match="at least one file"):
        bench([])


@pytest.mark.usefixtures("nothing_is_measured")
def test_rows_that_could_not_be_kept(tmp_path: Path, onnx_file: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"half": ')
    with pytest.raises(BenchmarkError, match="cut off"):
        bench([onnx_file], json_path=tmp_path / "rows.jsonl")


@pytest.mark.parametrize("shape", [None, [], "8x8", [1, 0, 8], [1, 8.5, 8]])
@pytest.mark.usefixtures("nothing_is_measured")
def test_a_file_without_its_input_shape(tmp_path: Path, digits_classifier: Classifier, shape: object) -> None:
    path = write_onnx(digits_classifier[0], tmp_path / "a.onnx", input_shape=shape)
    with pytest.raises(BenchmarkError, match=r"a\.onnx: expected input_shape"):
        bench([path])


@pytest.mark.usefixtures("nothing_is_measured")
def test_files_of_different_inputs(tmp_path: Path, onnx_file: Path, digits_classifier: Classifier) -> None:
    other = write_onnx(digits_classifier[0], tmp_path / "b.onnx", input_shape=[1, 4, 16])
    with pytest.raises(BenchmarkError, match=r"b\.onnx takes images of \[1, 4, 16\], .*digits\.onnx of \[1, 8, 8\]"):
        bench([onnx_file, other])


@pytest.mark.usefixtures("nothing_is_measured")
def test_a_runtime_that_is_not_there(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalDevice, "unavailable", lambda self, runtime: f"{runtime} is missing; install it")
    with pytest.raises(MissingDependencyError, match=r"digits\.onnx: .*onnxruntime is missing; install it"):
        bench([onnx_file])


def test_a_file_that_does_not_do_what_it_says(tmp_path: Path, digits_classifier: Classifier) -> None:
    graph = digits_classifier[0]
    path = write_onnx(graph, tmp_path / "a.onnx", num_classes=7, dataset=None)
    with pytest.raises(BenchmarkError, match=r"a\.onnx: expected output \[1, 7\], found \[1, 10\]"):
        bench([path])
    path = write_onnx(graph, tmp_path / "a.onnx", input_shape=[1, 4, 4], dataset=None)
    with pytest.raises(DataError, match="1 x 8 x 8"):
        bench([path])


def test_outputs_that_are_not_finite_are_not_timed(tmp_path: Path, digits_classifier: Classifier) -> None:
    graph = digits_classifier[0]
    flatten, linear = graph.nodes
    # Each weight is finite in float32; the sum of 64 products is not.
    huge = replace(linear, weight=np.full((10, 64), 3e38))  # type: ignore[call-arg]
    path = write_onnx(replace(graph, nodes=[flatten, huge]), tmp_path / "a.onnx")
    with pytest.raises(BenchmarkError, match="not finite"):
        bench([path], data="digits")


def test_every_device_can_be_loaded() -> None:
    for name in DEVICES:
        device = DEVICES.load(name)
        assert issubclass(device, Device)
        assert device.name == name


def test_this_machine_has_no_address() -> None:
    assert isinstance(open_device("local"), LocalDevice)
    with pytest.raises(BenchmarkError, match="device local is this machine and has no address, found 'there'"):
        open_device("local://there")


class RecordingDevice(Device):
    """Measures nothing and remembers what it was asked."""

    name = "recording"

    def __init__(self) -> None:
        self.files: list[ModelFile] = []

    @classmethod
    def open(cls, address: str) -> RecordingDevice:
        return cls()

    def close(self) -> None:
        pass

    def unavailable(self, runtime: str) -> str | None:
        return None if runtime in ("onnxruntime", "lce") else f"no {runtime}"

    def measure(
        self, files: Sequence[ModelFile], data: BenchmarkInput, plan: BenchmarkSettings, console: Console | None = None
    ) -> list[BenchmarkRow]:
        self.files = list(files)
        return []


def test_auto_takes_the_first_runtime_that_is_available() -> None:
    known = ("litert", "lce", "onnxruntime")
    why = RecordingDevice().unavailable
    assert choose_runtime(known, "auto", "a.onnx", why) == "lce"
    assert choose_runtime(known, "onnxruntime", "a.onnx", why) == "onnxruntime"
    with pytest.raises(MissingDependencyError, match=r"a\.onnx: .*litert: no litert"):
        choose_runtime(known, "litert", "a.onnx", why)


def test_baseline_needs_to_know_the_model(tmp_path: Path, digits_classifier: Classifier) -> None:
    path = write_onnx(digits_classifier[0], tmp_path / "a.onnx", model=None)
    with pytest.raises(BenchmarkError, match=r"a\.onnx: a float twin needs model in"):
        bench([path], baseline=True)
