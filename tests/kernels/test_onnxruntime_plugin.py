"""The ONNX Runtime operators against stock ONNX Runtime, which runs the functions that the same files carry."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

import bnnedge
from bnnedge.errors import ExportError, MissingDependencyError
from bnnedge.export.runtimes.ort import OnnxRuntime
from bnnedge.export.runtimes.ort_bnnedge import OnnxRuntimeBnnedge
from bnnedge.export.targets.onnx import functions as onnx_functions
from bnnedge.export.targets.onnx.reader import binary_nodes
from bnnedge.kernels import native, plugins
from bnnedge.methods import METHODS
from bnnedge.models import MODELS

Array = NDArray[Any]
SIGNS = np.array([-1, 1], np.int8)
OPERATORS = [onnx_functions.BINARY_CONV, onnx_functions.BINARY_CONV_THRESHOLD]


@dataclass
class Layer:
    """One binary convolution as a file of its own; ``None`` leaves an attribute out."""

    op_type: str = onnx_functions.BINARY_CONV
    channels: int = 64
    outputs: int = 8
    kernel: tuple[int, int] = (3, 3)
    group: int = 1
    size: tuple[str | int, str | int] = ("H", "W")
    strides: list[int] | None = field(default_factory=lambda: [1, 1])
    pads: list[int] | None = field(default_factory=lambda: [1, 1, 1, 1])
    dilations: list[int] | None = field(default_factory=lambda: [1, 1])

    def constants(self) -> list[TensorProto]:
        rng = np.random.default_rng(self.channels + 7 * self.outputs)
        shape = (self.outputs, self.channels // self.group, *self.kernel)
        reach = int(np.prod(shape[1:]))
        multiplier = rng.normal(size=self.outputs).astype(np.float32)
        multiplier[::5] = 0
        threshold = rng.integers(-reach - 1, reach + 2, self.outputs).astype(np.int32)
        threshold[::7] = np.iinfo(np.int32).min
        threshold[3::7] = np.iinfo(np.int32).max
        values: dict[str, Array] = {"W": onnx_functions.pack_weight(rng.choice(SIGNS, shape))}
        if self.op_type == onnx_functions.BINARY_CONV:
            values |= {"multiplier": multiplier, "bias": rng.normal(size=self.outputs).astype(np.float32)}
        else:
            values |= {"threshold": threshold}
        return [numpy_helper.from_array(value, name) for name, value in values.items()]

    def model(self) -> ModelProto:
        attributes: dict[str, Any] = {"strides": self.strides, "pads": self.pads, "dilations": self.dilations}
        constants = self.constants()
        node = helper.make_node(
            self.op_type,
            ["X", *[tensor.name for tensor in constants]],
            ["Y"],
            name="layer",
            domain=onnx_functions.DOMAIN,
            group=self.group,
            channels=[self.channels // self.group],
            **{name: value for name, value in attributes.items() if value is not None},
        )
        graph = helper.make_graph(
            [node],
            "graph",
            [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", self.channels, *self.size])],
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
            constants,
        )
        return model_of(graph)

    def input(self, batch: int, height: int, width: int) -> Array:
        """Values of both signs, and all that is neither: zeros of both signs and NaN."""
        rng = np.random.default_rng(batch + 31 * height + 97 * width)
        x = rng.normal(size=(batch, self.channels, height, width)).astype(np.float32)
        x[rng.random(x.shape) < 0.1] = 0.0
        x[rng.random(x.shape) < 0.1] = -0.0
        x[rng.random(x.shape) < 0.05] = np.nan
        return x


def model_of(graph: onnx.GraphProto) -> ModelProto:
    opsets = [helper.make_opsetid("", onnx_functions.OPSET), helper.make_opsetid(onnx_functions.DOMAIN, 1)]
    functions = [onnx_functions.function(name) for name in OPERATORS]
    return helper.make_model(graph, ir_version=8, opset_imports=opsets, functions=functions)


def session(model: ModelProto | bytes, plugin: bool = True, threads: int = 1, **options: Any) -> Any:
    runtime = OnnxRuntimeBnnedge if plugin else OnnxRuntime
    settings = runtime.session_options(threads)
    for name, value in options.items():
        setattr(settings, name, value)
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])


def run(opened: Any, x: Array, **more: Array) -> Array:
    output: Array = opened.run(None, {"X": x, **more})[0]
    return output


def assert_same_bits(found: Array, expected: Array) -> None:
    assert found.shape == expected.shape
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def assert_equals_stock(layer: Layer, *shapes: tuple[int, int, int]) -> None:
    model = layer.model()
    own, stock = session(model), session(model, plugin=False)
    for shape in shapes:
        x = layer.input(*shape)
        assert_same_bits(run(own, x), run(stock, x))


def test_the_library_is_built() -> None:
    assert plugins.unavailable(plugins.ONNXRUNTIME_OPERATORS) is None
    assert OnnxRuntimeBnnedge.unavailable() is None


@pytest.mark.parametrize("op_type", OPERATORS)
def test_the_node_stays_and_without_the_library_it_does_not(op_type: str, tmp_path: Path) -> None:
    kinds = {}
    for plugin in (True, False):
        path = tmp_path / f"{plugin}.onnx"
        session(Layer(op_type).model(), plugin, optimized_model_filepath=str(path))
        kinds[plugin] = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds[True] == [op_type]
    assert op_type not in kinds[False] and "Conv" in kinds[False]


@pytest.mark.parametrize("op_type", OPERATORS)
@pytest.mark.parametrize("kernel", native.kernel_names() if native.available() else [])
@pytest.mark.parametrize("channels", [1, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129])
def test_channels(op_type: str, kernel: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNNEDGE_KERNEL", kernel)
    assert_equals_stock(Layer(op_type, channels, outputs=channels), (2, 5, 6))


@pytest.mark.parametrize("op_type", OPERATORS)
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (1, 5), (5, 2), (7, 7)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 2, 3, 1], [4, 4, 4, 4]])
def test_windows(op_type: str, kernel: tuple[int, int], stride: int, pads: list[int]) -> None:
    layer = Layer(op_type, 35, 33, kernel, strides=[stride, 3 - stride // 2], pads=pads)
    assert_equals_stock(layer, (1, 8, 8), (2, 7, 10))


@pytest.mark.parametrize("op_type", OPERATORS)
@pytest.mark.parametrize("dilations", [[2, 2], [1, 3], [4, 1]])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [2, 3, 2, 3]])
def test_dilation(op_type: str, dilations: list[int], pads: list[int]) -> None:
    assert_equals_stock(Layer(op_type, 33, 9, dilations=dilations, pads=pads, strides=[2, 1]), (2, 9, 10))


@pytest.mark.parametrize("op_type", OPERATORS)
@pytest.mark.parametrize(
    ("channels", "group", "outputs"),
    [(64, 2, 64), (64, 2, 6), (96, 3, 99), (6, 2, 4), (66, 2, 70), (5, 5, 5), (40, 40, 80), (130, 2, 66)],
)
def test_groups(op_type: str, channels: int, group: int, outputs: int) -> None:
    """The channels of some do not fill whole words."""
    assert_equals_stock(Layer(op_type, channels, outputs, group=group, strides=[1, 2]), (1, 6, 7), (3, 4, 4), (1, 6, 7))


def test_a_map_smaller_than_the_filter() -> None:
    assert_equals_stock(Layer(channels=33, kernel=(7, 7), pads=[3, 3, 3, 3]), (2, 1, 1), (1, 2, 5))


@pytest.mark.parametrize("op_type", OPERATORS)
def test_left_out_attributes_have_the_defaults_of_conv(op_type: str) -> None:
    assert_equals_stock(Layer(op_type, strides=None, pads=None, dilations=None), (2, 5, 6))


@pytest.mark.parametrize("group", [1, 2])
def test_bits_beyond_the_channels_have_no_meaning(group: int) -> None:
    """Where the file holds ones in the spare bits of its weights, nothing changes."""
    layer = Layer(channels=34, group=group)
    model = layer.model()
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    channels = layer.channels // group
    bits = np.unpackbits(weight, axis=-1, bitorder="little")
    bits[..., channels:] = 1
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.packbits(bits, axis=-1, bitorder="little"), "W"))
    x = layer.input(2, 5, 5)
    assert_same_bits(run(session(model), x), run(session(layer.model(), plugin=False), x))


@pytest.mark.parametrize("op_type", OPERATORS)
def test_sizes_change_between_runs(op_type: str) -> None:
    shapes = [(1, 6, 6), (4, 6, 6), (1, 13, 5), (2, 1, 1), (1, 6, 6), (0, 6, 6), (3, 40, 41), (1, 6, 6)]
    assert_equals_stock(Layer(op_type, 65, 40, strides=[2, 2]), *shapes)


@pytest.mark.parametrize("op_type", OPERATORS)
def test_two_threads(op_type: str) -> None:
    layer = Layer(op_type, 96, 130)
    own, stock = session(layer.model(), threads=2), session(layer.model(), plugin=False)
    for shape in [(1, 31, 29), (3, 31, 29), (1, 3, 3)]:
        assert_same_bits(run(own, layer.input(*shape)), run(stock, layer.input(*shape)))


@pytest.mark.parametrize("op_type", OPERATORS)
@pytest.mark.parametrize(("channels", "group"), [(96, 1), (66, 2)])
def test_runs_at_once(op_type: str, channels: int, group: int) -> None:
    """Two sessions, each used by several threads with several sizes."""
    layer = Layer(op_type, channels, 70, group=group)
    model = layer.model()
    opened, stock = [session(model), session(model, threads=2)], session(model, plugin=False)
    shapes = [(1, 9, 9), (2, 9, 9), (1, 17, 6), (3, 5, 5)]
    cases = [(layer.input(*shape), run(stock, layer.input(*shape))) for shape in shapes]

    def work(index: int) -> None:
        for step in range(40):
            x, expected = cases[(index * step + index) % len(cases)]
            assert_same_bits(run(opened[(index + step) % 2], x), expected)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


@pytest.mark.parametrize("op_type", OPERATORS)
def test_weights_that_are_inputs_of_the_graph(op_type: str) -> None:
    layer = Layer(op_type, 33, 7)
    model = layer.model()
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    model.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, [None] * len(tensor.dims))
        for tensor in model.graph.initializer
    )
    del model.graph.initializer[:]
    x = layer.input(2, 5, 6)
    opened = session(model)
    for _ in range(2):
        expected = run(session(model, plugin=False), x, **constants)
        assert_same_bits(run(opened, x, **constants), expected)
        constants["W"] = constants["W"] ^ np.array([1, 2, 4, 8, 1, 0, 0, 0], np.uint8)


def test_sizes_keep_their_names(capfd: pytest.CaptureFixture[str]) -> None:
    """Shape inference goes through: the residual addition is known to be one, and no run warns of a wrong size."""
    same = Layer(outputs=64).model()
    add = helper.make_node("Add", ["X", "Y"], ["Z"])
    same.graph.node.append(add)
    same.graph.output[0].name = "Z"
    opened = session(same, log_severity_level=2)
    assert opened.get_outputs()[0].shape == ["N", 64, "H", "W"]
    assert run(opened, Layer().input(2, 5, 6)).shape == (2, 64, 5, 6)

    halved = session(Layer(strides=[2, 2], size=("H", 9)).model(), log_severity_level=2)
    assert halved.get_outputs()[0].shape == ["N", 8, "(H-1)/2+1", 5]
    assert run(halved, Layer().input(3, 5, 9)).shape == (3, 8, 3, 5)

    nameless = Layer(strides=[2, 1], pads=[0, 0, 0, 0]).model()
    for dimension in nameless.graph.input[0].type.tensor_type.shape.dim:
        dimension.ClearField("dim_param")
    opened = session(nameless, log_severity_level=2)
    batch, outputs, height, width = opened.get_outputs()[0].shape
    assert outputs == 8 and len({batch, height, width} - {-1, "-1", ""}) == 3
    assert run(opened, Layer().input(2, 7, 6)).shape == (2, 8, 3, 4)
    assert capfd.readouterr().err == ""


def test_an_unknown_kernel_name_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNNEDGE_KERNEL", "abacus")
    with pytest.raises(ExportError, match=r"BNNEDGE_KERNEL=abacus does not run on this CPU; known: "):
        OnnxRuntimeBnnedge.open(Layer().model().SerializeToString())


def test_weights_are_packed_when_the_file_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is chosen then, too: a later run does not look for one again, whatever its size."""
    layer = Layer()
    opened, stock = session(layer.model()), session(layer.model(), plugin=False)
    monkeypatch.setenv("BNNEDGE_KERNEL", "abacus")
    for size in (5, 9):
        assert_same_bits(run(opened, layer.input(1, size, 5)), run(stock, layer.input(1, size, 5)))


def test_sessions_outlive_their_options() -> None:
    layer = Layer()
    x = layer.input(1, 5, 5)
    first = session(layer.model())
    expected = run(first, x)
    for _ in range(5):
        assert_same_bits(run(session(layer.model()), x), expected)
    assert_same_bits(run(first, x), expected)


def set_attribute(model: ModelProto, name: str, value: Any) -> None:
    """Replace or remove (None) an attribute of the layer."""
    node = model.graph.node[0]
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    if value is not None:
        kept.append(value if isinstance(value, AttributeProto) else helper.make_attribute(name, value))
    del node.attribute[:]
    node.attribute.extend(kept)


def set_constant(model: ModelProto, index: int, value: Array) -> None:
    name = model.graph.initializer[index].name
    model.graph.initializer[index].CopyFrom(numpy_helper.from_array(value, name))


def attribute(name: str, value: Any) -> Callable[[ModelProto], None]:
    return lambda model: set_attribute(model, name, value)


def constant(index: int, value: Array) -> Callable[[ModelProto], None]:
    return lambda model: set_constant(model, index, value)


def without_the_last_input(model: ModelProto) -> None:
    del model.graph.node[0].input[-1]


def an_empty_input(model: ModelProto) -> None:
    model.graph.node[0].input[-1] = ""


def one_input_more(model: ModelProto) -> None:
    model.graph.node[0].input.append("bias")


def double_input(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def wrong_output_type(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64


def flat_input(model: ModelProto) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[3:]


def other_channels(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 65


def padded_for_dilation(model: ModelProto) -> None:
    set_attribute(model, "dilations", [2**15, 2**15])
    set_attribute(model, "pads", [2**15] * 4)


def no_attributes(model: ModelProto) -> None:
    del model.graph.node[0].attribute[:]


HUGE = 2**62
HOSTILE: dict[str, tuple[Callable[[ModelProto], None], str]] = {
    "no attributes": (no_attributes, "'layer': attribute channels"),
    "no channels": (attribute("channels", None), "attribute channels"),
    "channels 0": (attribute("channels", [0]), "channels"),
    "channels below 0": (attribute("channels", [-64]), "channels must be in"),
    "channels huge": (attribute("channels", [HUGE]), "channels must be in"),
    "channels of another word count": (attribute("channels", [32]), "W must hold 4 bytes a tap for 32 channels"),
    "channels of other inputs": (attribute("channels", [63]), "X must have 63 channels, found 64"),
    "channels float": (attribute("channels", 1.5), "attribute channels must be a list of 1 integers"),
    "strides one number": (attribute("strides", 1), "attribute strides must be a list of 2 integers"),
    "strides text": (attribute("strides", "aa"), "attribute strides must be a list of 2 integers"),
    "strides three": (attribute("strides", [1, 1, 1]), "attribute strides must be a list of 2 integers, found 3"),
    "stride 0": (attribute("strides", [1, 0]), "strides must be in"),
    "stride huge": (attribute("strides", [1, HUGE]), "strides must be in"),
    "pad below 0": (attribute("pads", [0, 0, 0, -1]), "pads must be in"),
    "pad huge": (attribute("pads", [HUGE, 0, HUGE, 0]), "pads must be in"),
    "output beyond memory": (attribute("pads", [2**20] * 4), "layer"),
    "dilation 0": (attribute("dilations", [0, 1]), "dilations must be in"),
    "dilation huge": (attribute("dilations", [HUGE, HUGE]), "dilations must be in"),
    "dilation large": (attribute("dilations", [2**30, 2**30]), "layer"),
    "dilation that takes memory": (padded_for_dilation, "reaches too far beyond an input of 1 x 1"),
    "dilation wider than the input": (attribute("dilations", [100, 1]), "does not fit into the padded input of 5 x 5"),
    "group 0": (attribute("group", 0), "group must be in"),
    "group huge": (attribute("group", HUGE), "group must be in"),
    "group list": (attribute("group", helper.make_attribute("group", [1])), "attribute group must be one integer"),
    "groups that do not divide": (attribute("group", 3), "the 8 filters of W do not divide into 3 groups"),
    "an input less": (without_the_last_input, "layer"),
    "an input empty": (an_empty_input, "layer"),
    "an input more": (one_input_more, "layer"),
    "X double": (double_input, "tensor(double)"),
    "X of rank 3": (flat_input, "X must have 4 dimensions, found 3"),
    "X of other channels": (other_channels, "X must have 64 channels, found 65"),
    "Y int64": (wrong_output_type, "tensor(int64)"),
    "W float": (constant(0, np.zeros((8, 3, 3, 8), np.float32)), "tensor(float)"),
    "W of rank 3": (constant(0, np.zeros((8, 3, 8), np.uint8)), "W must have 4 dimensions, found 3"),
    "W without filters": (constant(0, np.zeros((0, 3, 3, 8), np.uint8)), "layer"),
    "W without taps": (constant(0, np.zeros((8, 0, 3, 8), np.uint8)), "the dimensions of W must be in"),
    "W without bytes": (constant(0, np.zeros((8, 3, 3, 0), np.uint8)), "the dimensions of W must be in"),
    "W of odd bytes": (constant(0, np.zeros((8, 3, 3, 7), np.uint8)), "W must hold 8 bytes a tap"),
    "multiplier short": (constant(1, np.zeros(7, np.float32)), "multiplier must have a value for each of the 8"),
    "multiplier scalar": (constant(1, np.zeros((), np.float32)), "multiplier must have 1 dimensions, found 0"),
    "multiplier double": (constant(1, np.zeros(8)), "tensor(double)"),
    "bias long": (constant(2, np.zeros(9, np.float32)), "bias must have a value for each of the 8"),
    "bias of rank 2": (constant(2, np.zeros((8, 1), np.float32)), "bias must have 1 dimensions, found 2"),
}

RUN_ALL = """
import json, sys
import numpy as np, onnxruntime
from bnnedge.export.runtimes.ort_bnnedge import OnnxRuntimeBnnedge

said = {}
for name in json.load(open("names.json")):
    try:
        options = OnnxRuntimeBnnedge.session_options(1)
        session = onnxruntime.InferenceSession(f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        shape = [5 if isinstance(size, str) else size for size in session.get_inputs()[0].shape]
        session.run(None, {"X": np.ones([1, *shape[1:]], np.float32)})
        said[name] = None
    except Exception as error:
        said[name] = str(error)
json.dump(said, open("said.json", "w"))
"""


@pytest.mark.parametrize("functions", [True, False])
def test_hostile_files_are_refused(functions: bool, tmp_path: Path) -> None:
    """The files are opened in a process of its own: a crash would be seen, and it goes on after each error."""
    names = ["good first", *HOSTILE, "good last"]
    for name in names:
        model = Layer().model()
        if name in HOSTILE:
            HOSTILE[name][0](model)
        if not functions:
            del model.functions[:]
        (tmp_path / f"{name}.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "names.json").write_text(json.dumps(names))
    done = subprocess.run([sys.executable, "-c", RUN_ALL], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "said.json").read_text())
    assert said.pop("good first") is None and said.pop("good last") is None
    wrong = {name: text for name, text in said.items() if HOSTILE[name][1] not in (text or "it ran")}
    assert wrong == {}


def exported(model: str, size: int, path: Path) -> bytes:
    network = bnnedge.create_model(model, num_classes=10, in_channels=3, image_size=size)
    method = METHODS.load("ste")
    method(method.Options()).attach(network)
    with torch.no_grad():
        network.train()(torch.randn(4, 3, size, size))  # batch norms get statistics
    file = path / "network.onnx"
    bnnedge.export(network.eval(), torch.randn(1, 3, size, size), file, target="onnx", check=False)
    return file.read_bytes()


@pytest.mark.parametrize("model", list(MODELS))
def test_exported_networks(model: str, tmp_path: Path) -> None:
    data = exported(model, 16, tmp_path)
    own, stock = OnnxRuntimeBnnedge.open(data), OnnxRuntime.open(data)
    for batch in (1, 3):
        images = np.random.default_rng(batch).normal(size=(batch, 3, 16, 16)).astype(np.float32)
        found, signs = OnnxRuntimeBnnedge.tap(data, images)
        expected, stock_signs = OnnxRuntime.tap(data, images)
        assert signs.keys() == stock_signs.keys() and len(signs) > 3
        assert all(np.array_equal(signs[name], stock_signs[name]) for name in signs)
        assert_same_bits(*found.values(), *expected.values())
        assert_same_bits(own.run(images), stock.run(images))


def test_the_runtime_gives_the_integers_of_a_layer(tmp_path: Path) -> None:
    data = exported("resnet20_1w1a", 16, tmp_path)
    node = binary_nodes(onnx.load_from_string(data))[3]
    channels = next(helper.get_attribute_value(a)[0] for a in node.attribute if a.name == "channels")
    signs = np.random.default_rng(1).choice(SIGNS, (2, channels, 8, 8))
    expected = OnnxRuntime.integers(data, node.name, signs)
    assert np.array_equal(OnnxRuntimeBnnedge.integers(data, node.name, signs), expected)
    assert len(np.unique(expected)) > 10


def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Path:
        raise MissingDependencyError(f"plug-in {name} was not built")

    monkeypatch.setattr(plugins, "library_path", missing)
    assert OnnxRuntimeBnnedge.unavailable() == "plug-in bnnedge_onnxruntime was not built"
    with pytest.raises(MissingDependencyError, match="was not built"):
        OnnxRuntimeBnnedge.open(Layer().model().SerializeToString())


def test_an_older_runtime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library says reaches the user: here through an option object that refuses."""

    class Options:
        def register_custom_ops_library(self, path: str) -> None:
            raise RuntimeError("bnnedge needs ONNX Runtime 1.17 or newer,\n found 1.16.3")

    with pytest.raises(MissingDependencyError, match=r"needs ONNX Runtime 1\.17 or newer, found 1\.16\.3"):
        plugins.register_onnxruntime(Options())
