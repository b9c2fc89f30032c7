"""Every model x target, two methods: one epoch on real digits, exported and verified; the file's size; the errors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

import bnnedge
from bnnedge.config import RunConfig
from bnnedge.data.dataset import load_dataset
from bnnedge.errors import CheckpointError, ExportError, UnknownNameError, VerificationError
from bnnedge.export import api
from bnnedge.export.evaluate import evaluate_file
from bnnedge.export.float_twin import float_twin_files
from bnnedge.export.graph import Graph
from bnnedge.export.run import VERIFY_IMAGES, export_run
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.summary import format_bytes, summarize
from bnnedge.export.targets import TARGETS
from bnnedge.layers.binary_layers import BinaryConv2d
from bnnedge.methods import METHODS
from bnnedge.models import MODELS
from bnnedge.train.load import load_run
from bnnedge.train.metrics import evaluate
from bnnedge.train.start import start_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Runs of one epoch, trained when first asked for."""
    root = tmp_path_factory.mktemp("runs")

    class Trained(dict[tuple[str, str], Path]):
        def __missing__(self, key: tuple[str, str]) -> Path:
            method, model = key
            self[key] = root / f"{method}_{model}"
            # Enough small steps for a network whose decisions one sign turned by rounding does not change.
            lr = {"rbnn": 0.02}.get(method)
            config = RunConfig(method=method, model=model, image_size=(16,), epochs=1, batch_size=32, lr=lr)
            start_run(config, self[key])
            return self[key]

    return Trained()


# All other methods: tests/methods/test_registry.py. ResNet-34 is ResNet-18 with more blocks, and takes a minute.
TRAINED = [
    pytest.param(method, model, marks=[pytest.mark.slow] if method == "rbnn" and model != "resnet20_1w1a" else [])
    for method in ("ste", "rbnn")
    for model in MODELS
    if model != "resnet34_1w1a"
]


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize(("method", "model"), TRAINED)
def test_every_model_and_target(method: str, model: str, target: str, runs: dict[tuple[str, str], Path]) -> None:
    run = runs[method, model]
    report = export_run(run, target)
    if report.verification is None:
        pytest.skip(report.not_verified)
    assert report.verification.images == VERIFY_IMAGES
    assert report.verification.binary_layers == len([r for r in report.rows if r.binary_weights])
    assert report.path.stat().st_size == report.file_bytes
    assert all(row.reason for row in report.rows if not row.binary_weights and row.kind.startswith(("conv", "linear")))

    rows = summarize(str(run))
    bits, floats = sum(r.binary_weights for r in rows), sum(r.float_params for r in rows)
    if model == "resnet20_1w1a":
        # Its 16-channel filters fill half of a 32-bit word, and 33 KiB of weights do not hide some 130 operators.
        stored = sum(r.weight_bytes for r in report.rows)
        assert report.file_bytes <= stored + 28 * 1024
    else:
        assert report.file_bytes <= 1.05 * (bits / 8 + 4 * floats)
    found = {r.name: r.binary_weights for r in summarize(str(report.path)) if r.binary_weights}
    assert found == {r.name: r.binary_weights for r in rows if r.binary_weights}


@pytest.mark.parametrize("target", list(TARGETS))
def test_a_run_with_an_int8_stem(target: str, runs: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    """The input's codes are the pixels of the data set; both accuracies are those of `evaluate`."""
    run = runs["rbnn", "resnet20_1w1a"]
    path = tmp_path / f"net{TARGETS.load(target).suffix}"
    report = export_run(run, target, path, stem="int8")
    assert report.stem is not None
    loaded = load_run(run)
    dataset = load_dataset("digits", 16)
    assert report.stem.scores_fp32 == evaluate(loaded.model, dataset, "test", torch.device("cpu")).scores
    assert report.stem.scores == evaluate_file(path, "test").scores
    low, high = loaded.dataset.preprocessing.input_range
    black, white = (float(v) for v in (dataset.arrays("train")[0].min(), dataset.arrays("train")[0].max()))
    assert (low, high) == pytest.approx((black, white))
    assert [r.name for r in report.rows if r.int8_weights] == ["stem"]


@pytest.mark.parametrize("method", ["ste", "rbnn"])
def test_w1a32_is_exported_in_float_and_says_so(method: str, tmp_path: Path) -> None:
    model = bnnedge.create_model("resnet20_1w1a", num_classes=10, in_channels=1, image_size=8)
    training_method = METHODS.load(method)
    training_method(training_method.Options(a32=True)).attach(model)
    model.train()(torch.randn(16, 1, 8, 8))
    for target in TARGETS:
        report = bnnedge.export(
            model.eval(), torch.randn(1, 1, 8, 8), tmp_path / f"net{TARGETS.load(target).suffix}", target=target
        )
        assert {r.reason for r in report.rows if r.name.startswith("blocks") and "conv" in r.kind} == {
            "float activations (W1A32)"
        }


def test_public_export_of_a_binarized_user_module(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1, bias=True), nn.PReLU(64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 48), nn.BatchNorm1d(48), nn.Linear(48, 10),
    )  # fmt: skip
    model = bnnedge.binarize(net, method="rbnn")
    model.train()(torch.randn(32, 3, 17, 17))
    for name in TARGETS:
        path = tmp_path / f"net{TARGETS.load(name).suffix}"
        report = bnnedge.export(model.eval(), torch.randn(1, 3, 17, 17), path, target=name)
        assert [r.name for r in report.rows if r.binary_weights] == ["3", "7"]
        assert report.verification is None or report.verification.images == api.VERIFY_IMAGES
        runtime = next(r for r in map(RUNTIMES.load, TARGETS.load(name).runtimes))
        if runtime.unavailable() is None:
            assert runtime.open(path.read_bytes()).run(torch.zeros(5, 3, 17, 17).numpy()).shape == (5, 10)


def test_a_file_that_fails_verification_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Graph) -> Graph:
        next(graph.binary_nodes()).weight[0] *= -1
        return optimize(graph)

    optimize = api.optimize  # type: ignore[attr-defined]
    model = nn.Sequential(BinaryConv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)).eval()
    path = tmp_path / "net.onnx"
    path.write_bytes(b"an earlier export")
    with monkeypatch.context() as patch:
        patch.setattr(api, "optimize", lambda graph, int8_stem: wrong(graph))
        # The judge compares with the model, not with the graph that the file was written from.
        with pytest.raises(VerificationError, match=r"^(0|the output differs)"):
            bnnedge.export(model, torch.zeros(1, 3, 6, 6), path)
    assert path.read_bytes() == b"an earlier export"
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    bnnedge.export(model, torch.zeros(1, 3, 6, 6), path)
    assert path.read_bytes() != b"an earlier export"


def test_user_mistakes(tmp_path: Path) -> None:
    model = nn.Sequential(BinaryConv2d(3, 4, 3))
    with pytest.raises(UnknownNameError, match="unknown target 'tflite'; known: onnx, lce"):
        bnnedge.export(model, torch.zeros(1, 3, 6, 6), tmp_path / "x", target="tflite")
    with pytest.raises(ExportError, match=r"folder .* does not exist"):
        bnnedge.export(model, torch.zeros(1, 3, 6, 6), tmp_path / "gone" / "x.onnx")
    for name in ("x.tflite", "x", ""):
        with pytest.raises(ExportError, match=r"expected a file ending in \.onnx, found"):
            bnnedge.export(model, torch.zeros(1, 3, 6, 6), tmp_path / name)
    (tmp_path / "folder.onnx").mkdir()
    os.mkfifo(tmp_path / "pipe.onnx")
    for name in ("folder.onnx", "pipe.onnx"):
        with pytest.raises(ExportError, match=f"{name} exists and is no file that could be replaced"):
            bnnedge.export(model, torch.zeros(1, 3, 6, 6), tmp_path / name)
    assert (tmp_path / "pipe.onnx").is_fifo()
    with pytest.raises(CheckpointError, match="there is no run in"):
        export_run(tmp_path / "gone", "onnx")
    with pytest.raises(ExportError, match=r"gone.onnx does not exist; `bnnedge export RUN`"):
        summarize(str(tmp_path / "gone.onnx"))
    with pytest.raises(UnknownNameError, match="unknown model 'resnet'"):
        summarize("resnet")


def test_float_twin_has_the_topology_and_no_bits(runs: dict[tuple[str, str], Path]) -> None:
    run = runs["rbnn", "resnet20_1w1a"]
    metadata = TARGETS.load("onnx")().read_metadata(export_run(run, "onnx", check=False).path.read_bytes())
    binary = summarize(str(run))
    for name, data in float_twin_files(metadata, "net.onnx"):
        target = TARGETS.load("onnx" if name.endswith(".onnx") else "lce")()
        rows = [r for r in target.describe(data) if r.kind.startswith(("conv", "linear"))]
        assert sum(r.binary_weights for r in rows) == 0
        assert sum(r.float_macs for r in rows) == sum(r.binary_macs + r.float_macs for r in binary)
        assert {r.reason for r in rows} <= {"float twin", "float in the model", ""}


def test_summary_of_a_model_by_name() -> None:
    rows = summarize("resnet18_1w1a")
    assert rows == summarize("resnet18_1w1a", num_classes=10, in_channels=3, image_size=32)
    assert sum(r.binary_weights for r in rows) == 11_157_504
    assert rows[0].float_macs == 3 * 9 * 64 * 32 * 32
    first = next(r for r in rows if r.binary_weights)
    assert (first.binary_macs, first.input_shape, first.weight_bytes) == (
        64 * 9 * 64 * 1024,
        (64, 32, 32),
        64 * 9 * 64 // 8 + 4 * 64,
    )


def test_bytes_are_counted_in_binary_units() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1024, 1536, 2**20)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "1.00 MiB",
    ]


def test_load_run_gives_the_weights_that_were_exported(runs: dict[tuple[str, str], Path]) -> None:
    loaded = load_run(runs["rbnn", "resnet20_1w1a"])
    assert loaded.config.method == "rbnn"
    assert not loaded.model.training
