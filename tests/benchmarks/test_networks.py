"""Whole networks against their peers, small ones: exact arithmetic, twins, refusal of wrong results, rows and table."""

from __future__ import annotations

import copy
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import typer
from onnx import numpy_helper
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from bnnedge.benchmarks.devices.device import BenchmarkSettings
from bnnedge.benchmarks.networks import __main__ as command
from bnnedge.benchmarks.networks import measure as networks_measure
from bnnedge.benchmarks.networks.deployments import INT8, Deployment, TorchSession, deployments, open_checked
from bnnedge.benchmarks.networks.int8_onnx import quantize_onnx, weight_bits
from bnnedge.benchmarks.networks.int8_tflite import quantize_tflite
from bnnedge.benchmarks.networks.measure import rest_and_wake, timed
from bnnedge.benchmarks.networks.twins import NetworkForms, build, noise, run_torch, settle, torch_twin
from bnnedge.benchmarks.rows import BenchmarkRow, read_rows
from bnnedge.errors import BenchmarkError
from bnnedge.export.graph import Activation, Graph, Node, TensorSpec
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.runtimes.runtime import Images, Session
from bnnedge.export.targets.tflite.reader import parse_model
from bnnedge.export.targets.tflite.target import LceTarget
from bnnedge.kernels import plugins
from bnnedge.layers.binary_layers import BinaryLinear
from bnnedge.layers.deploy import deploy, deployed_layers
from bnnedge.models.resnet_imagenet import BinaryImageNetResNet

MODEL = "resnet20_1w1a"
SIZE = 12
IMAGES = noise(3, (3, SIZE, SIZE), seed=7)
PLUGINS = [plugins.unavailable(name) for name in (plugins.LITERT_DELEGATE, plugins.ONNXRUNTIME_OPERATORS)]

needs_plugins = pytest.mark.skipif(any(PLUGINS), reason="the plug-ins were not built")


@pytest.fixture(scope="module")
def network() -> NetworkForms:
    return build(MODEL, SIZE, num_classes=5)


@pytest.fixture(scope="module")
def int8_stem_network() -> NetworkForms:
    return build(MODEL, SIZE, num_classes=5, int8_stem=True)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def relative(found: Images, expected: Images) -> float:
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


def run(runtime: str, data: bytes | BenchmarkError) -> Images:
    assert isinstance(data, bytes)
    session = RUNTIMES.load(runtime).open(data)
    return np.concatenate([session.run(IMAGES[i : i + 1]) for i in range(len(IMAGES))])


def test_every_number_before_a_sign_is_exact(network: NetworkForms) -> None:
    """The same network in float64: not one pre-activation differs, and there are both signs."""
    seen: dict[bool, list[Any]] = {}
    for double in (False, True):
        model, values = network.binary.double() if double else network.binary.float(), seen.setdefault(double, [])
        hooks = [
            layer.register_forward_pre_hook(lambda _, x, values=values: values.append(x[0].double()))
            for layer in deployed_layers(model).values()
        ]
        with torch.inference_mode():
            model(torch.from_numpy(IMAGES).to(torch.float64 if double else torch.float32))
        for hook in hooks:
            hook.remove()
    network.binary.float()
    assert len(seen[False]) == len(deployed_layers(network.binary)) == 18
    for narrow, wide in zip(seen[False], seen[True], strict=True):
        assert torch.equal(narrow, wide)
        assert 0.1 < float((wide < 0).double().mean()) < 0.9


def test_float_shortcuts_are_exact_too() -> None:
    """Three in a row, on the values of a stem that gives 256 different ones."""
    model: nn.Module = BinaryImageNetResNet(5, 3, (1, 1, 1, 1), (33, 64, 65, 96))
    images = torch.from_numpy(noise(4, (3, 64, 64), seed=3))
    settle(model, images)
    model = deploy(model)
    seen: list[torch.Tensor] = []
    for layer in deployed_layers(model).values():
        layer.register_forward_pre_hook(lambda _, x: seen.append(x[0].double()))
    with torch.inference_mode():
        model(images)
        model.double()(images.double())
    for narrow, wide in zip(seen[:8], seen[8:], strict=True):
        assert torch.equal(narrow, wide)
        assert 0 < float((wide < 0).double().mean()) < 0.95  # hardly any behind a max-pool


def test_torch_twin_is_the_network_without_signs(network: NetworkForms) -> None:
    model = copy.deepcopy(network.binary)
    for layer in deployed_layers(model).values():
        layer.input_mode = "float"
    expected = run_torch(model, IMAGES)
    assert relative(run_torch(network.twin, IMAGES), expected) < 1e-4
    assert relative(run_torch(network.binary, IMAGES), expected) > 0.1
    kinds = Counter(type(module).__name__ for module in network.twin.modules())
    assert kinds["BatchNorm2d"] == 0 and kinds["Conv2d"] == 19


class Branching(nn.Module):
    """A branch that depends on the data, which cannot be traced, and a binary dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = BinaryLinear(4, 3, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.dense(x if x.sum() > 0 else -x))


def test_torch_twin_of_control_flow_and_dense_layers() -> None:
    model = Branching().eval()
    x = np.random.default_rng(0).random((2, 4)).astype(np.float32)
    (layer,) = deployed_layers(deploy(model)).values()
    expected = x @ (layer.weight * layer.scale[:, None]).numpy().T + layer.bias.numpy()
    np.testing.assert_allclose(run_torch(torch_twin(model), x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("form", "runtime"), [("float_onnx", "onnxruntime"), ("float_tflite", "litert")])
def test_float_twins_compute_what_the_torch_twin_does(network: NetworkForms, form: str, runtime: str) -> None:
    assert relative(run(runtime, getattr(network, form)), run_torch(network.twin, IMAGES)) < 1e-4


@pytest.mark.parametrize(("form", "runtime"), [("int8_onnx", "onnxruntime"), ("int8_tflite", "litert")])
def test_int8_twins_are_near(network: NetworkForms, form: str, runtime: str) -> None:
    """Near, and not float: eight bits leave their mark."""
    difference = relative(run(runtime, getattr(network, form)), run_torch(network.twin, IMAGES))
    assert 1e-3 < difference < INT8


@pytest.mark.parametrize(
    ("machine", "flags", "bits"),
    [
        ("x86_64", ["avx2"], 7),
        ("AMD64", ["avx2", "avx512f", "avx512bw"], 7),
        ("x86_64", ["avx2", "avx_vnni"], 8),
        ("x86_64", ["avx2", "avx512f", "avx512_vnni"], 8),
        ("aarch64", ["asimd"], 8),
    ],
)
def test_weight_bits_of_onnxruntime(machine: str, flags: list[str], bits: int) -> None:
    assert weight_bits(machine, flags) == bits


@pytest.mark.parametrize(("bits", "largest"), [(8, 127), (7, 64)])
def test_int8_onnx_weights_have_their_bits(network: NetworkForms, bits: int, largest: int) -> None:
    """Two products with an unsigned byte fit 16 bits if weights are at most 64."""
    model = onnx.load_model_from_string(quantize_onnx(network.float_onnx, IMAGES, bits))
    weights = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    weights = [weight for weight in weights if weight.ndim > 1]
    assert len(weights) == 20
    assert max(np.abs(weight.astype(int)).max() for weight in weights) in (largest - 1, largest)


def test_int8_onnx_convolutions_are_of_integers(network: NetworkForms, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(network.int8_onnx, options)
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["QLinearConv"] == 19 and kinds["Conv"] == 0


def test_int8_tflite_is_of_integers_between_its_ends(network: NetworkForms) -> None:
    assert isinstance(network.int8_tflite, bytes)
    model, original = parse_model(network.int8_tflite), parse_model(network.float_tflite)
    codes = [op.code for op in model.operators]
    assert codes == ["QUANTIZE", *(op.code for op in original.operators), "DEQUANTIZE"]
    floats = [i for i, tensor in enumerate(model.subgraph.tensors) if tensor.type == 0]
    assert floats == [*model.inputs, *model.outputs]
    assert len(network.int8_tflite) < 0.4 * len(network.float_tflite)
    for op in model.operators:
        if op.code == "CONV_2D":
            source, weight, bias = (model.subgraph.tensors[i].quantization for i in op.inputs)
            assert len(weight.scale) == model.shape(op.inputs[1])[0]
            np.testing.assert_allclose(bias.scale, np.array(weight.scale) * source.scale[0], rtol=1e-6)


def test_int8_tflite_refuses_what_it_does_not_know() -> None:
    nodes: list[Node] = [Activation(name="squash", inputs=("x",), output="y", kind="tanh")]
    graph = Graph(("x",), ("y",), nodes, {name: TensorSpec((1, 3, 4, 4)) for name in "xy"})
    with pytest.raises(BenchmarkError, match="TANH is not among those"):
        quantize_tflite(LceTarget().write(graph), IMAGES[:, :, :4, :4])


def test_too_small_an_image() -> None:
    with pytest.raises(BenchmarkError, match="at least 8, found 7"):
        build(MODEL, 7, num_classes=5)


@needs_plugins
def test_every_deployment_is_right(network: NetworkForms, one_thread: None) -> None:
    missing: list[str] = []
    found = deployments(network, missing.append)
    assert [c.ours for c in found] == [True, True] + [False] * (len(found) - 2)
    for deployment in found:
        assert open_checked(deployment, network, IMAGES, 1, missing.append) is not None
    names = {c.name for c in found}
    twin = "int8_twin" if network.int8_onnx_weight_bits == 8 else "int8_twin_7bit"
    assert {f"{twin}.onnx in onnxruntime", "int8_twin.tflite in litert", "float32_twin in torch"} < names
    assert len(found) == 9 or (len(found) == 7 and all("lce" in reason for reason in missing))


@needs_plugins
def test_every_deployment_with_an_int8_stem_is_right(int8_stem_network: NetworkForms, one_thread: None) -> None:
    missing: list[str] = []
    found = deployments(int8_stem_network, missing.append)
    assert [c.codes is not None for c in found[:2]] == [True, True]
    for deployment in found:
        assert open_checked(deployment, int8_stem_network, IMAGES, 1, missing.append) is not None
    names = [c.name for c in found]
    assert names[0] == f"{MODEL}_int8_stem.onnx in onnxruntime+bnnedge"
    assert len(found) == 11 or (len(found) == 7 and all("lce" in reason for reason in missing))
    # With the signs of the float stem the outputs have nothing in common.
    float_stem = replace(found[0], codes=None)
    with pytest.raises(BenchmarkError, match="differs by"):
        open_checked(float_stem, int8_stem_network, IMAGES, 1, missing.append)


@needs_plugins
def test_no_deployment_of_ours(network: NetworkForms, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime+bnnedge", "litert+bnnedge"):
        monkeypatch.setattr(RUNTIMES.load(name), "unavailable", classmethod(lambda _: "not built"))
    missing: list[str] = []
    with pytest.raises(BenchmarkError, match="neither of bnnedge's plug-ins"):
        deployments(network, missing.append)
    assert missing[0] == f"{MODEL}.onnx in onnxruntime+bnnedge: not built"


class Constant(Session):
    """Always the same answer."""

    def __init__(self, output: Images) -> None:
        self.output = output
        self.invoked_ns: list[int] = []

    def prepare(self, images: Images) -> Images:
        return images

    def invoke(self, prepared: Any) -> Images:
        self.invoked_ns.append(time.perf_counter_ns())
        return self.output


def deployment_of(session: Session, form: str = "binary", ours: bool = True) -> Deployment:
    return Deployment("file", "runtime", "1", form, 1, ours, lambda threads: session)


def test_wrong_results_are_not_timed(network: NetworkForms) -> None:
    right = {"binary": run_torch(network.binary, IMAGES[:1]), "int8 twin": run_torch(network.twin, IMAGES[:1])}
    for form, error, passes in (("binary", 5e-4, True), ("binary", 2e-3, False), ("int8 twin", 0.5, False)):
        made = deployment_of(Constant(right[form] * np.float32(1 + error)), form)
        if passes:
            assert open_checked(made, network, IMAGES[:1], 1, pytest.fail) is not None
        else:
            with pytest.raises(BenchmarkError, match=r"file in runtime: the output differs by .* from PyTorch's"):
                open_checked(made, network, IMAGES[:1], 1, pytest.fail)
    with pytest.raises(BenchmarkError, match="differs by nan"):
        open_checked(deployment_of(Constant(right["binary"] * np.float32("nan"))), network, IMAGES[:1], 1, pytest.fail)
    with pytest.raises(BenchmarkError, match=r"expected output \(1, 5\), found \(1, 4\)"):
        open_checked(deployment_of(Constant(right["binary"][:, :4])), network, IMAGES[:1], 1, pytest.fail)


def test_a_peer_that_fails_is_left_out(network: NetworkForms) -> None:
    missing: list[str] = []
    wrong = deployment_of(Constant(np.zeros((1, 5), np.float32)), ours=False)
    assert open_checked(wrong, network, IMAGES[:1], 1, missing.append) is None

    def broken(threads: int) -> Session:
        raise RuntimeError(f"no {threads}\nthreads")

    assert open_checked(replace(wrong, open=broken), network, IMAGES, 2, missing.append) is None
    assert missing[0].startswith("file in runtime: the output differs by 1 of its size")
    assert missing[1] == "file in runtime: no 2 threads"


def test_rest_comes_before_each_contender_with_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause and then an untimed run come before each timed one; only the timed ones are given back."""
    monkeypatch.setattr(networks_measure, "REST_S", 0.2)  # longer than a busy machine delays a call
    monkeypatch.setattr(networks_measure, "WAKE_S", 0.0)
    sessions = [Constant(IMAGES), Constant(IMAGES)]
    opened = [(deployment_of(session), cast(Session, session)) for session in sessions]
    measured = timed(opened, IMAGES, BenchmarkSettings(threads=2, warmup=0, runs=3), None)
    assert len(measured) == 2 and all(len(seconds) == 3 and np.median(seconds) < 0.15 for seconds in measured)
    order = sorted((at, i) for i, session in enumerate(sessions) for at in session.invoked_ns)
    assert [i for _, i in order] == [0, 0, 1, 1] * 3
    gaps = np.diff([at for at, _ in order])
    assert (gaps[1::2] >= 0.19e9).all()

    monkeypatch.setattr(networks_measure, "WAKE_S", 0.02)
    awake = Constant(IMAGES)
    started = time.perf_counter_ns()
    rest_and_wake(partial(awake.invoke, IMAGES))
    # Between two works a busy machine may let any time pass, so the whole is what has a lower bound: rest and waking.
    assert time.perf_counter_ns() - started >= 0.22e9
    assert awake.invoked_ns

    alone = [Constant(IMAGES), Constant(IMAGES)]
    measured = timed([(deployment_of(s), s) for s in alone], IMAGES, BenchmarkSettings(warmup=0, runs=3), None)
    assert [len(seconds) for seconds in measured] == [3, 3] == [len(session.invoked_ns) for session in alone]


def test_a_torch_session_takes_channels_last(network: NetworkForms, one_thread: None) -> None:
    session = TorchSession(network.twin, 1)
    prepared = session.prepare(IMAGES)
    assert prepared.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(session.invoke(prepared), session.run(IMAGES))


@needs_plugins
def test_command(tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()
    app.command()(command.main)
    rows_file = tmp_path / "rows.jsonl"
    arguments = ["--models", MODEL, "--image-size", "8", "--warmup", "0", "--runs", "2", "--json", str(rows_file)]
    arguments += ["--stem", "int8"]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    rows = read_rows(rows_file)
    assert [row.runtime for row in rows[:2]] == ["onnxruntime+bnnedge", "litert+bnnedge"]
    assert {row.metadata["method"] for row in rows} == {"ste", "float32 twin", "int8 twin"}
    assert [row.metadata.get("stem") for row in rows[:2]] == [{"precision": "int8"}] * 2
    assert all(row.metadata["input_shape"] == [3, 8, 8] and row.threads == 1 and row.runs == 2 for row in rows)
    assert f"{MODEL}, 8x8, 1 thread" in done.output
    assert "int8_stem.onnx" in done.output and "int8_twin.tflite" in done.output

    mistakes = (
        (["--models", "alexnet"], "unknown model"),
        (["--image-size", "4"], "at least 8, found 4"),
        (["--stem", "int4"], "unknown stem 'int4'"),
    )
    for wrong, message in mistakes:
        done = CliRunner().invoke(app, wrong)
        assert done.exit_code == 2 and message in done.output.replace("\n", " ")


def test_table(make_row: Callable[..., BenchmarkRow]) -> None:
    rows = [
        make_row(file="n_int8_stem.onnx", runtime="onnxruntime+bnnedge", p20_ms=1, p50_ms=2.0, p80_ms=3),
        make_row(file="n.tflite", runtime="litert+bnnedge", p20_ms=1, p50_ms=1.0, p80_ms=3),
        make_row(file="int8_twin.onnx", runtime="onnxruntime", p20_ms=1, p50_ms=5.0, p80_ms=9, file_bytes=2048),
    ]
    table = command.table("n", rows, ["somebody: not installed"])
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["int8_stem.onnx", "binary.tflite", "int8_twin.onnx"]
    assert [column.header for column in table.columns][5:7] == ["x\n.onnx", "x\n.tflite"]
    assert cells[5] == ["1.00", "0.50", "2.50"] and cells[6] == ["2.00", "1.00", "5.00"] and cells[7][2] == "2"
    assert str(table.caption).endswith("\nwithout somebody: not installed")


@pytest.mark.parametrize("columns", [80, 60])
def test_table_shows_whole_numbers(make_row: Callable[..., BenchmarkRow], columns: int) -> None:
    """A table of 80 columns has one line a row, though every name and number is as long as they get."""
    times = {"p20_ms": 101.23, "p50_ms": 987.65, "p80_ms": 1234.5}
    rows = [
        make_row(file=f"{name}.tflite", runtime=runtime, **times, file_bytes=45_654 * 1024)
        for name, runtime in zip(
            ("resnet18_1w1a", "resnet18_1w1a_int8_stem", "float32_twin"),
            ("onnxruntime+bnnedge", "litert+bnnedge", "onnxruntime"),
            strict=True,
        )
    ]
    console = Console(width=columns, file=(out := io.StringIO()))
    console.print(command.table("resnet18_1w1a", rows, []))
    lines = [line for line in out.getvalue().splitlines() if "1.00" in line]
    assert len(lines) == 3 and "…" not in out.getvalue()
    for line in lines:
        assert line.split()[-6:] == ["101", "988", "1234", "1.00", "1.00", "45654"]
    if columns == 80:
        assert lines[0].split()[:2] == ["binary.tflite", "onnxruntime+bnnedge"]
        assert lines[2].split()[:2] == ["float32_twin.tflite", "onnxruntime"]
