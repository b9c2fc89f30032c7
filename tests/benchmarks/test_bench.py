from __future__ import annotations

import dataclasses
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

from bnnedge.benchmarks.bench import bench, open_device, random_input, read_model_file
from bnnedge.benchmarks.devices import DEVICES
from bnnedge.benchmarks.devices.device import BenchmarkInput, BenchmarkSettings, Device, ModelFile
from bnnedge.benchmarks.devices.local import LocalDevice
from bnnedge.benchmarks.report.table import score_column
from bnnedge.benchmarks.rows import BenchmarkRow, read_rows
from bnnedge.data.dataset import Dataset
from bnnedge.errors import (
    BenchmarkError,
    BnnedgeError,
    BnnedgeWarning,
    DataError,
    ExportError,
    MissingDependencyError,
    UnknownNameError,
)
from bnnedge.export.api import export as export_model
from bnnedge.export.evaluate import evaluate_file
from bnnedge.export.graph import Conv2d, Graph, Linear, TensorSpec
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.runtimes.choose import choose_runtime
from bnnedge.export.targets.onnx.target import OnnxTarget
from bnnedge.export.targets.tflite.target import LceTarget
from bnnedge.methods import METHODS
from bnnedge.models.create import create_model
from bnnedge.progress import Report
from bnnedge.tasks import TASKS
from bnnedge.tasks.task import Score, Task
from tests.benchmarks.this_process import measure_in_this_process

Classifier = tuple[Graph, NDArray[np.float64]]
QUICK: dict[str, Any] = {"warmup": 1, "runs": 5}
GREY = {"channels": 1, "height": 8, "width": 8, "scale": 16.0, "mean": [0.3], "std": [0.4]}


def write_onnx(graph: Graph, path: Path, **metadata: Any) -> Path:
    path.write_bytes(OnnxTarget().write(replace(graph, metadata={**graph.metadata, **metadata})))
    return path


@pytest.fixture
def onnx_file(tmp_path: Path, digits_classifier: Classifier) -> Path:
    return write_onnx(digits_classifier[0], tmp_path / "digits.onnx")


def without_digest(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key != "digest"}


def missing_runtime(name: str) -> str:
    """Why ``name`` cannot be used here; empty if it can."""
    why: str | None = RUNTIMES.load(name).unavailable()
    return why or ""


@pytest.fixture
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("measured before everything was checked")

    monkeypatch.setattr(LocalDevice, "measure", refuse)


def expected_scores(outputs: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Top-1 and top-5 of the float64 outputs, if no rounding to float32 can change them."""
    ordered = np.sort(outputs, axis=1)[:, ::-1]
    # 65 products of at most 10 in size, each rounded to float32: far below 65 * 10 * 2**-23 < 1e-4.
    own = np.take_along_axis(outputs, labels[:, None], 1)[:, 0]
    distances = np.abs(outputs - own[:, None])
    distances[np.arange(len(labels)), labels] = np.inf
    assert distances.min() > 1e-5
    assert ordered.shape == outputs.shape
    ahead = (outputs > own[:, None]).sum(1)
    return {"top1": float((ahead < 1).mean()), "top5": float((ahead < 5).mean())}


def test_rows_of_a_real_file(tmp_path: Path, onnx_file: Path, digits: Dataset, digits_classifier: Classifier) -> None:
    rows = bench([onnx_file, str(onnx_file)], runtime="onnxruntime", json_path=tmp_path / "rows.jsonl", **QUICK)
    assert [row.file for row in rows] == [str(onnx_file)] * 2
    for row in rows:
        assert (row.runtime, row.device, row.threads, row.warmup, row.runs) == ("onnxruntime", "local", 1, 1, 5)
        assert row.input == "digits test"
        assert row.task == "classification"
        assert row.scores == expected_scores(digits_classifier[1], digits.arrays("test")[1])
        assert row.scores["top1"] > 0.9
        assert row.samples == digits.size("test")
        assert row.file_bytes == onnx_file.stat().st_size
        assert without_digest(row.metadata) == digits_classifier[0].metadata
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
    assert row.scores == expected_scores(digits_classifier[1], digits.arrays("test")[1])
    assert without_digest(row.metadata) == digits_classifier[0].metadata


@pytest.mark.skipif(bool(missing_runtime("litert")), reason=missing_runtime("litert"))
def test_a_binary_network_beside_its_float_twins(tmp_path: Path, digits: Dataset) -> None:
    name = "resnet20_1w1a"
    torch.manual_seed(0)
    model = create_model(name, num_classes=10, in_channels=1, image_size=8)
    method = METHODS.load("ste")
    method(method.Options()).attach(model)
    metadata = {"model": name, "method": "ste", **digits.info.to_metadata()}
    export_model(model, torch.zeros(1, 1, 8, 8), tmp_path / "net.onnx", check=False, metadata=metadata)
    binary, *twins = bench([tmp_path / "net.onnx"], baseline=True, **QUICK)
    assert binary.samples == digits.size("test")
    assert [(Path(twin.file).suffix, twin.runtime) for twin in twins] == [
        (".onnx", "onnxruntime"),
        (".tflite", "litert"),
    ]
    for twin in twins:
        assert (twin.scores, twin.samples, twin.input) == ({}, 0, "digits test")
        assert twin.metadata["method"] == "float32 twin"
        # 1 bit for 32, and whatever of the network stays float: it is the same in both.
        assert 10 * binary.file_bytes < twin.file_bytes


def test_random_input_has_no_scores(onnx_file: Path) -> None:
    (row,) = bench([onnx_file], data="random", **QUICK)
    assert (row.input, row.task, row.scores, row.samples) == ("random normal", "classification", {}, 0)


def test_random_input_is_not_normalised(tmp_path: Path, digits_classifier: Classifier) -> None:
    path = write_onnx(digits_classifier[0], tmp_path / "a.onnx")
    noise = random_input([1, 8, 8])
    inputs, targets = noise.samples(read_model_file(path, "auto", LocalDevice()), slice(None))
    assert np.array_equal(inputs, noise.images) and targets is None


def test_random_input_is_normal_and_the_same_every_time() -> None:
    images = random_input([3, 31, 33], count=4).images
    assert images.shape == (4, 3, 31, 33)
    assert images.dtype == np.float32
    assert np.array_equal(images, random_input([3, 31, 33], count=4).images)
    # 12,276 samples: the mean's standard error is 0.009, the deviation's 0.0064; five of them.
    assert abs(images.mean()) < 0.045
    assert abs(images.std() - 1) < 0.032


def test_data_that_is_not_at_hand_costs_the_scores_and_says_so(tmp_path: Path, digits_classifier: Classifier) -> None:
    path = write_onnx(digits_classifier[0], tmp_path / "a.onnx", dataset="cifar10")
    console = Console(file=io.StringIO(), width=1000)
    (row,) = bench([path], data_root=tmp_path, console=console, **QUICK)
    assert (row.input, row.scores) == ("random normal", {})
    assert isinstance(console.file, io.StringIO)
    assert "no scores, latency on random input: " in console.file.getvalue()
    with pytest.raises(DataError):
        bench([path], data="cifar10", data_root=tmp_path, console=console, **QUICK)


def test_hostile_names_are_printable(tmp_path: Path, digits_classifier: Classifier) -> None:
    path = write_onnx(digits_classifier[0], tmp_path / "\udcff\x1b[2J.onnx", classes=["[/nope]\x1b[2J", "y"])
    console = Console(file=io.StringIO(), width=1000)
    (row,) = bench([path], console=console, **QUICK)
    assert row.file == rf"{tmp_path}/\udcff\x1b[2J.onnx"
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert r"its 2 classes ([/nope]\x1b[2J, y)" in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["cat", "dog"]}, r"its 2 classes \(cat, dog\) are not the 10 of digits \(0, 1, 2, \.\.\)"),
        ({"classes": [*"1023456789"]}, r"its 10 classes \(1, 0, 2, \.\.\) are not the 10 of digits \(0, 1, 2, \.\.\)"),
        ({"dataset": "cifar10", "task": "copy"}, "trained for task copy, digits is made for classification"),
    ],
)
@pytest.mark.usefixtures("nothing_is_measured", "copy_task")
def test_data_that_does_not_fit_the_file(
    tmp_path: Path, digits_classifier: Classifier, changes: dict[str, Any], message: str
) -> None:
    path = write_onnx(digits_classifier[0], tmp_path / "a.onnx", **changes)
    with pytest.raises(DataError, match=rf"a\.onnx:? {message}") as caught:
        bench([path], data="digits")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preprocessing": {"channels": 1}}, "the preprocessing record lacks height, width"),
        ({"preprocessing": {**GREY, "std": [0.0]}}, r"std\.0: input should be greater than or equal to"),
        (
            {"preprocessing": {**GREY, "channels": 3, "mean": [0] * 3, "std": [1] * 3}},
            r"takes inputs of \[1, 8, 8\], but describes images of \[3, 8, 8\]",
        ),
        ({"input_shape": [3, 8, 8]}, r"the metadata says one input of \[3, 8, 8\], the file has one of \[1, 8, 8\]"),
        ({"task": "juggling"}, "unknown task 'juggling'"),
        ({"classes": 10}, "classes"),
    ],
)
@pytest.mark.usefixtures("nothing_is_measured")
def test_metadata_that_is_damaged(
    tmp_path: Path, digits_classifier: Classifier, changes: dict[str, Any], message: str
) -> None:
    path = write_onnx(digits_classifier[0], tmp_path / "a.onnx", **changes)
    with pytest.raises(ExportError, match=rf"a\.onnx: .*{message}") as caught:
        bench([path])
    assert "\n" not in str(caught.value)


def test_each_file_normalises_by_its_own_record(
    tmp_path: Path, onnx_file: Path, digits: Dataset, digits_classifier: Classifier
) -> None:
    """A changed mean changes the scores of its file alone, in ``bench`` as in ``evaluate FILE``."""
    record = digits.info.preprocessing
    shifted = dataclasses.replace(record, mean=(record.mean[0] + 1,)).to_dict()
    other = write_onnx(digits_classifier[0], tmp_path / "shifted.onnx", preprocessing=shifted)
    right, wrong = bench([onnx_file, other], **QUICK)
    assert right.scores == expected_scores(digits_classifier[1], digits.arrays("test")[1])
    assert wrong.scores["top1"] < right.scores["top1"] - 0.1
    for path, row in ((onnx_file, right), (other, wrong)):
        found = evaluate_file(path, "test", "onnxruntime")
        assert (found.scores, found.samples) == (row.scores, row.samples)


@pytest.mark.parametrize("change", [{"resize": "nearest"}, {"crop": 0.875}])
@pytest.mark.usefixtures("nothing_is_measured")
def test_files_that_read_other_pixels(
    tmp_path: Path, onnx_file: Path, digits_classifier: Classifier, change: dict[str, Any]
) -> None:
    record = {**digits_classifier[0].metadata["preprocessing"], **change}
    other = write_onnx(digits_classifier[0], tmp_path / "b.onnx", preprocessing=record)
    with pytest.raises(
        BenchmarkError, match=r"b\.onnx reads pictures at 8x8 \(.*digits\.onnx at 8x8 \(bilinear, whole\)"
    ):
        bench([onnx_file, other], data="digits")


def test_a_file_of_an_earlier_version_gives_the_same_scores(
    tmp_path: Path, onnx_file: Path, digits: Dataset, digits_classifier: Classifier
) -> None:
    record = digits.info.preprocessing
    described = {
        "name": "digits",
        "num_classes": 10,
        "class_names": list(digits.info.classes),
        "in_channels": 1,
        "image_size": 8,
        "mean": list(record.mean),
        "std": list(record.std),
    }
    graph = digits_classifier[0]
    keys = ("producer", "method", "model", "input_shape")
    old = replace(
        graph, metadata={**{key: graph.metadata[key] for key in keys}, "dataset": described, "num_classes": 10}
    )
    path = write_onnx(old, tmp_path / "old.onnx")
    new_row, old_row = bench([onnx_file, path], **QUICK)
    assert old_row.scores == new_row.scores


def test_a_file_that_says_nothing_is_measured_as_the_data_set_says(
    tmp_path: Path, digits: Dataset, digits_classifier: Classifier
) -> None:
    graph = replace(digits_classifier[0], metadata={"input_shape": [1, 8, 8]})
    path = write_onnx(graph, tmp_path / "foreign.onnx")
    (row,) = bench([path], data="digits", **QUICK)
    assert (row.task, row.samples) == ("classification", digits.size("test"))
    assert row.scores == expected_scores(digits_classifier[1], digits.arrays("test")[1])
    (row,) = bench([path], **QUICK)
    assert (row.input, row.task, row.scores) == ("random normal", None, {})
    path = write_onnx(flat_classifier(), tmp_path / "foreign.onnx", input_shape=[64])
    with pytest.raises(DataError, match=r"foreign\.onnx takes inputs of \[64\], no images; use --data random"):
        bench([path], data="digits")


def flat_classifier() -> Graph:
    """A network of 64 numbers, no image."""
    linear = Linear(
        name="head", inputs=("x",), output="y", weight=np.ones((10, 64)), bias=np.zeros(10), reason="last layer"
    )
    return Graph(("x",), ("y",), [linear], {"x": TensorSpec((1, 64)), "y": TensorSpec((1, 10))}, {"input_shape": [64]})


class Copy(Task):
    """The output is to be the input itself: targets are images [N, C, H, W]."""

    name = "copy"
    scores = (Score("rmse", "RMS error", "steps", higher_is_better=False),)

    def output_shape(self, height: int, width: int) -> tuple[int, ...]:
        return self.outputs, height, width

    def samples(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
        return inputs, inputs

    def sums(self, outputs: Any, targets: Any) -> Any:
        return np.array([((outputs - targets) ** 2).mean((1, 2, 3)).sum()])

    def score(self, sums: NDArray[np.float64], samples: int) -> dict[str, float]:
        return {"rmse": float(np.sqrt(sums[0] / samples))}

    def loss(self, outputs: Any, targets: Any) -> Any:
        raise NotImplementedError

    def soft_loss(self, outputs: Any, teacher_outputs: Any, temperature: float) -> Any:
        raise NotImplementedError

    def average(self, outputs: Any, how: str) -> Any:
        raise NotImplementedError

    def agreement(self, found: Any, expected: Any) -> float:
        raise NotImplementedError


@pytest.fixture
def copy_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS._paths, "copy", f"{__name__}:Copy")


@pytest.mark.usefixtures("copy_task")
def test_a_task_whose_targets_are_images(
    tmp_path: Path, digits: Dataset, digits_classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that halves its input is wrong by half of the normalised test images' root mean square."""
    half = Conv2d(
        name="half", inputs=("x",), output="y", weight=np.full((1, 1, 1, 1), 0.5), bias=np.zeros(1), reason=""
    )
    metadata = {**digits_classifier[0].metadata, "task": "copy", "outputs": 1}
    graph = Graph(("x",), ("y",), [half], {name: TensorSpec((1, 1, 8, 8)) for name in "xy"}, metadata)
    monkeypatch.setattr(LocalDevice, "measure", measure_in_this_process)
    copying, classifying = bench(
        [write_onnx(graph, tmp_path / "copy.onnx"), write_onnx(digits_classifier[0], tmp_path / "digits.onnx")], **QUICK
    )
    images = digits.arrays("test")[0].astype(np.float64)
    # float32 rounds inputs, outputs and 64 squares an image: far below 1e-5 of the result.
    assert copying.scores["rmse"] == pytest.approx(0.5 * np.sqrt((images**2).mean()), rel=1e-5)
    assert (copying.task, classifying.task) == ("copy", "classification")
    assert classifying.scores["top1"] > 0.9
    header, cells = score_column([copying, classifying])
    assert header == "score"
    assert cells == [f"RMS error {copying.scores['rmse']:.4g} steps", f"top-1 {classifying.scores['top1']:.2%}"]


def corrupt(path: Path) -> Path:
    path.write_bytes(b"\x08\x08" + bytes(range(256)))
    return path


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("missing.onnx", ExportError, r"missing\.onnx does not exist"),
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
    with pytest.raises(ExportError, match=r"a\.onnx: the metadata.* input"):
        bench([path])


@pytest.mark.usefixtures("nothing_is_measured")
def test_files_of_different_inputs(tmp_path: Path, onnx_file: Path, digits_classifier: Classifier) -> None:
    other = write_onnx(flat_classifier(), tmp_path / "b.onnx", input_shape=[64])
    with pytest.raises(BenchmarkError, match=r"b\.onnx takes inputs of \[64\], .*digits\.onnx of \[1, 8, 8\]"):
        bench([onnx_file, other])


@pytest.mark.usefixtures("nothing_is_measured")
def test_a_runtime_that_is_not_there(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalDevice, "unavailable", lambda self, runtime: f"{runtime} is missing; install it")
    with pytest.raises(MissingDependencyError, match=r"digits\.onnx: .*onnxruntime is missing; install it"):
        bench([onnx_file])


def test_a_file_that_does_not_do_what_it_says(tmp_path: Path, digits_classifier: Classifier) -> None:
    graph = digits_classifier[0]
    path = write_onnx(graph, tmp_path / "a.onnx", outputs=7)
    expected = r"expected output \[1, 7\], as task classification has with 7 outputs, found \[1, 10\]"
    for data in ("digits", "random"):
        with pytest.raises(BenchmarkError, match=rf"a\.onnx: {expected}"):
            bench([path], data=data)


def test_outputs_that_are_not_finite_are_not_timed(tmp_path: Path, digits_classifier: Classifier) -> None:
    graph = digits_classifier[0]
    flatten, linear = graph.nodes
    # Each weight is finite in float32; the sum of 64 products is not.
    huge = replace(linear, weight=np.full((10, 64), 3e38))  # type: ignore[call-arg]
    path = write_onnx(replace(graph, nodes=[flatten, huge]), tmp_path / "a.onnx")
    with pytest.raises(BenchmarkError, match="not finite"):
        bench([path], data="digits")


def test_an_output_that_is_not_finite_has_no_scores(
    tmp_path: Path, digits: Dataset, digits_classifier: Classifier
) -> None:
    """The first image passes the check before anything is timed; a brighter one overflows float32."""
    graph = digits_classifier[0]
    flatten, linear = graph.nodes
    record = dataclasses.replace(digits.info.preprocessing, std=(0.01,))
    pixels = np.abs(record.normalize(digits.raw_arrays("test")[0]).reshape(-1, 64).astype(np.float64))
    pixel = int((pixels.max(0) - pixels[0]).argmax())
    weight = np.zeros((10, 64))
    weight[0, pixel] = np.finfo(np.float32).max / ((pixels[0, pixel] + pixels[:, pixel].max()) / 2)
    huge = replace(linear, weight=weight, bias=np.zeros(10))  # type: ignore[call-arg]
    path = write_onnx(replace(graph, nodes=[flatten, huge]), tmp_path / "a.onnx", preprocessing=record.to_dict())
    with pytest.raises(BenchmarkError, match=r"a\.onnx: an output is not finite"):
        bench([path], data="digits", **QUICK)
    assert bench([path], data="digits", images=1, **QUICK)[0].samples == 1


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
        self,
        files: Sequence[ModelFile],
        data: BenchmarkInput,
        settings: BenchmarkSettings,
        report: Report | None = None,
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
    graph = digits_classifier[0]
    metadata = {key: value for key, value in graph.metadata.items() if key != "model"}
    path = write_onnx(replace(graph, metadata=metadata), tmp_path / "a.onnx")
    words = r"a\.onnx: a float twin needs the model and the number of outputs in .*; measured without it"
    with pytest.warns(BnnedgeWarning, match=words):
        (row,) = bench([path], baseline=True, **QUICK)
    assert row.file == str(path)
