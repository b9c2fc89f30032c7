"""The packed ONNX Runtime operators against stock ONNX Runtime, which runs the functions that the same files carry."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bnnedge.export.runtimes.ort import OnnxRuntime
from bnnedge.export.runtimes.ort_bnnedge import OnnxRuntimeBnnedge
from bnnedge.export.targets.onnx import functions as f
from bnnedge.kernels import native
from bnnedge.kernels.layout import has_spare_bits_set, pack, words_for
from tests.stock_onnxruntime import wrong_prelu

Array = NDArray[Any]
SIGNS = np.array([-1, 1], np.int8)
OPERATORS = [f.packed_conv(steps) for count in range(5) for steps in combinations(f.STEPS, count)]
OPERATORS.append(f.PACKED_CONV_THRESHOLD)
FULL = f.packed_conv(f.STEPS)


@dataclass
class Layer:
    """One packed convolution as a file of its own. Its parameters hold zeros of both signs, ones and ties."""

    op_type: str = FULL
    channels: int = 64
    outputs: int = 8
    kernel: tuple[int, int] = (3, 3)
    group: int = 1
    size: tuple[str | int, str | int] = ("H", "W")
    strides: list[int] = field(default_factory=lambda: [1, 1])
    pads: list[int] = field(default_factory=lambda: [1, 1, 1, 1])
    dilations: list[int] = field(default_factory=lambda: [1, 1])
    neutral: bool = False
    """Offset and limit are one number that changes nothing."""

    @property
    def steps(self) -> list[str]:
        return [step for step in f.STEPS if step in self.op_type]

    def constants(self) -> dict[str, Array]:
        rng = np.random.default_rng(self.channels + 7 * self.outputs)
        shape = (self.outputs, self.channels // self.group, *self.kernel)
        weight = f.pack_weight(rng.choice(SIGNS, shape))
        if self.op_type == f.PACKED_CONV_THRESHOLD:
            reach = int(np.prod(shape[1:]))
            threshold = rng.integers(-reach - 1, reach + 2, self.outputs).astype(np.int32)
            threshold[::7] = np.iinfo(np.int32).min
            threshold[3::7] = np.iinfo(np.int32).max
            return {"W": weight, "threshold": threshold}

        def values(*special: float) -> Array:
            drawn = rng.normal(size=self.outputs).astype(np.float32)
            for index, value in enumerate(special):
                drawn[index :: len(special) + 2] = value
            return drawn

        # Whole multipliers and biases here and there: then values meet limits exactly. A single bias must not be 0:
        # ONNX Runtime drops the addition of one 0, although it turns -0.0 into 0.0.
        found = {"W": weight, "multiplier": values(0.0, 1.0, -1.0, -0.5), "bias": values(2.0, 0.0, -0.0)}
        if "PRelu" in self.steps:
            offset = np.array(-0.0, np.float32) if self.neutral else values(-0.0, 0.0)
            found |= {"slope": values(0.0, 1.0, -2.0), "offset": offset}
        if "Sign" in self.steps:
            found["limit"] = np.array(0.0, np.float32) if self.neutral else values(0.0, -0.0, 1.0, np.inf, -np.inf)
        return found

    def model(self) -> ModelProto:
        constants = self.constants()
        inputs = ["P", *constants]
        if "Add" in self.steps:
            inputs.insert(4, "residual")
        outputs = {"Y": TensorProto.FLOAT, "Q": TensorProto.UINT8}
        if self.op_type == f.PACKED_CONV_THRESHOLD:
            del outputs["Y"]
        elif "Sign" not in self.steps:
            del outputs["Q"]
        attributes: dict[str, Any] = {"low": -1.5, "high": 2.25} if "Clip" in self.steps else {}
        node = helper.make_node(
            self.op_type,
            inputs,
            list(outputs),
            name="layer",
            domain=f.DOMAIN,
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            group=self.group,
            channels=[self.channels // self.group],
            **attributes,
        )
        images = [image("P", TensorProto.UINT8, [*self.size, 4 * words_for(self.channels)])]
        if "Add" in self.steps:
            images.append(image("residual", TensorProto.FLOAT, ["OH", "OW", self.outputs]))
        graph = helper.make_graph(
            [node],
            "graph",
            images,
            [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        return model_of(graph)

    def feeds(self, batch: int, height: int, width: int) -> dict[str, Array]:
        rng = np.random.default_rng(batch + 31 * height + 97 * width)
        words = pack(rng.choice(SIGNS, (batch, height, width, self.channels)))
        found: dict[str, Array] = {"P": words.astype("<u4").view(np.uint8)}
        if "Add" in self.steps:
            rows, columns = (
                (size + self.pads[axis] + self.pads[axis + 2] - self.dilations[axis] * (self.kernel[axis] - 1) - 1)
                // self.strides[axis]
                + 1
                for axis, size in enumerate((height, width))
            )
            found["residual"] = awkward_floats(rng, (batch, rows, columns, self.outputs))
        return found


def image(name: str, kind: int, shape: list[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["N", *shape])


def awkward_floats(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Values of both signs, and all that is neither: zeros of both signs and NaN; infinities."""
    x = rng.normal(size=shape).astype(np.float32)
    for value, share in ((0.0, 0.1), (-0.0, 0.1), (np.nan, 0.05), (np.inf, 0.02), (-np.inf, 0.02), (1.0, 0.1)):
        x[rng.random(shape) < share] = value
    return x


def model_of(graph: onnx.GraphProto) -> ModelProto:
    opsets = [helper.make_opsetid("", f.OPSET), helper.make_opsetid(f.DOMAIN, 1)]
    names = {node.op_type for node in graph.node if node.domain == f.DOMAIN}
    functions = [f.function(name) for name in sorted(names)]
    return helper.make_model(graph, ir_version=8, opset_imports=opsets, functions=functions)


def session(model: ModelProto, plugin: bool = True, threads: int = 1, **options: Any) -> Any:
    if not plugin and any("PRelu" in node.op_type for node in model.graph.node) and (wrong := wrong_prelu()):
        pytest.skip(wrong)
    runtime = OnnxRuntimeBnnedge if plugin else OnnxRuntime
    settings = runtime.session_options(threads)
    for name, value in options.items():
        setattr(settings, name, value)
    return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def assert_same_bits(found: list[Array], expected: list[Array]) -> None:
    """Equal to the last bit, except that any NaN is as good as another."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert np.array_equal(np.isnan(one), np.isnan(other))
        bits = np.uint32 if one.dtype == np.float32 else one.dtype
        assert (one.view(bits) == other.view(bits))[~np.isnan(one)].all()


def assert_equals_stock(layer: Layer, *shapes: tuple[int, int, int], threads: int = 1) -> None:
    model = layer.model()
    own, stock = session(model, threads=threads), session(model, plugin=False)
    for shape in shapes:
        feeds = layer.feeds(*shape)
        found = own.run(None, feeds)
        assert_same_bits(found, stock.run(None, feeds))
        if found[-1].dtype == np.uint8:
            assert not has_spare_bits_set(found[-1].view("<u4"), layer.outputs)


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
@pytest.mark.parametrize("channels", [1, 33, 64])
def test_operators(op_type: str, channels: int) -> None:
    assert_equals_stock(Layer(op_type, channels, outputs=channels), (2, 5, 6), (1, 1, 1))
    assert_equals_stock(Layer(op_type, 65, outputs=channels, neutral=True), (1, 4, 7))


@pytest.mark.parametrize("kernel", native.kernel_names() if native.available() else [])
@pytest.mark.parametrize("op_type", [FULL, f.PACKED_CONV_THRESHOLD])
@pytest.mark.parametrize("outputs", [3, 31, 32, 127, 129])
def test_kernels(kernel: str, op_type: str, outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNNEDGE_KERNEL", kernel)
    assert_equals_stock(Layer(op_type, 35, outputs), (2, 5, 6))


@pytest.mark.parametrize("op_type", [FULL, f.PACKED_CONV_THRESHOLD])
@pytest.mark.parametrize(
    "window",
    [
        {"kernel": (1, 1), "pads": [0] * 4, "strides": [2, 2]},
        {"kernel": (2, 5), "pads": [0, 2, 3, 1], "strides": [1, 3]},
        {"kernel": (7, 7), "pads": [4] * 4, "strides": [2, 2]},
        {"kernel": (3, 3), "pads": [2, 3, 2, 3], "dilations": [2, 3]},
    ],
)
def test_windows(op_type: str, window: dict[str, Any]) -> None:
    assert_equals_stock(Layer(op_type, 35, 33, **window), (1, 8, 8), (2, 7, 10))


@pytest.mark.parametrize("op_type", [FULL, f.PACKED_CONV_THRESHOLD])
def test_groups(op_type: str) -> None:
    assert_equals_stock(Layer(op_type, 96, 96, group=3, strides=[1, 2]), (1, 6, 7), (3, 4, 4))


def test_groups_that_share_a_word_of_the_output() -> None:
    """Thresholds may; a convolution that writes floats and signs says that it may not."""
    assert_equals_stock(Layer(f.PACKED_CONV_THRESHOLD, 64, 6, group=2), (2, 5, 5))
    assert_equals_stock(Layer(f.packed_conv(["Add", "Clip"]), 64, 6, group=2), (2, 5, 5))
    with pytest.raises(Exception, match="only where groups fill whole words"):
        session(Layer(FULL, 64, 6, group=2).model())


@pytest.mark.parametrize("op_type", [FULL, f.PACKED_CONV_THRESHOLD])
def test_sizes_change_between_runs(op_type: str) -> None:
    shapes = [(1, 6, 6), (4, 6, 6), (1, 13, 5), (2, 1, 1), (1, 6, 6), (0, 6, 6), (3, 40, 41), (1, 6, 6)]
    assert_equals_stock(Layer(op_type, 65, 40, strides=[2, 2]), *shapes)
    assert_equals_stock(Layer(op_type, 96, 130), (1, 31, 29), (3, 31, 29), threads=2)


def test_runs_at_once() -> None:
    """Two sessions, each used by several threads with several sizes."""
    layer = Layer(FULL, 96, 70)
    model = layer.model()
    opened, stock = [session(model), session(model, threads=2)], session(model, plugin=False)
    shapes = [(1, 9, 9), (2, 9, 9), (1, 17, 6), (3, 5, 5)]
    cases = [(layer.feeds(*shape), stock.run(None, layer.feeds(*shape))) for shape in shapes]

    def work(index: int) -> None:
        for step in range(40):
            feeds, expected = cases[(index * step + index) % len(cases)]
            assert_same_bits(opened[(index + step) % 2].run(None, feeds), expected)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


def test_the_floats_may_be_left_out_but_not_the_signs() -> None:
    layer = Layer(FULL, 64, 40)
    model = layer.model()
    full = session(model)
    model.graph.node[0].output[0] = ""
    del model.graph.output[0]
    for shape in [(2, 5, 5), (1, 9, 4)]:
        feeds = layer.feeds(*shape)
        for plugin in (True, False):
            assert_same_bits(session(model, plugin).run(None, feeds), full.run(None, feeds)[1:])
    model = layer.model()
    del model.graph.node[0].output[1], model.graph.output[1]
    with pytest.raises(Exception, match=r"layer.* has output size 1"):
        session(model)


def test_what_is_added_to_is_kept_while_something_else_reads_it() -> None:
    """The convolution may write where the residual is, but not before its last reader."""
    layer = Layer(f.packed_conv(["Add"]), 64, 64)
    model = layer.model()
    graph = model.graph
    graph.input[1].name = "R"
    graph.node.insert(0, helper.make_node("Neg", ["R"], ["residual"]))
    graph.node.append(helper.make_node("Sub", ["Y", "residual"], ["Z"]))
    graph.output[0].name = "Z"
    feeds = layer.feeds(2, 6, 6)
    feeds["R"] = feeds.pop("residual")
    assert_same_bits(session(model).run(None, feeds), session(model, plugin=False).run(None, feeds))


def test_parameters_that_are_inputs_of_the_graph() -> None:
    layer = Layer(FULL, 33, 7)
    model = layer.model()
    constants = layer.constants()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    del model.graph.initializer[:]
    opened, stock = session(model), session(model, plugin=False)
    for _ in range(2):
        feeds = {**layer.feeds(2, 5, 6), **constants}
        assert_same_bits(opened.run(None, feeds), stock.run(None, feeds))
        constants["W"] = constants["W"] ^ np.array([1, 2, 4, 8, 1, 0, 0, 0], np.uint8)
        constants["limit"] = -constants["limit"]


def test_signs_at_any_address() -> None:
    layer = Layer(f.PACKED_CONV_THRESHOLD, 33, 9)
    feeds, opened = layer.feeds(2, 5, 6), session(layer.model())
    expected = opened.run(None, feeds)
    shifted = np.empty(feeds["P"].size + 1, np.uint8)[1:].reshape(feeds["P"].shape)
    shifted[:] = feeds["P"]
    assert_same_bits(opened.run(None, {"P": shifted}), expected)


def test_sizes_keep_their_names(capfd: pytest.CaptureFixture[str]) -> None:
    layer = Layer(f.packed_conv(["Sign"]), 64, 40)
    opened = session(layer.model(), log_severity_level=2)
    assert [output.shape for output in opened.get_outputs()] == [["N", "H", "W", 40], ["N", "H", "W", 8]]
    opened.run(None, layer.feeds(2, 5, 6))
    halved = session(Layer(f.PACKED_CONV_THRESHOLD, strides=[2, 2], size=("H", 9)).model(), log_severity_level=2)
    assert halved.get_outputs()[0].shape == ["N", "(H-1)/2+1", 5, 4]
    assert capfd.readouterr().err == ""


def pack_model(channels: int, limit: list[Any]) -> ModelProto:
    node = helper.make_node(f.PACK_SIGNS, ["X", "limit"], ["P"], name="pack", domain=f.DOMAIN)
    inputs = [image("X", TensorProto.FLOAT, ["H", "W", channels])]
    inputs.append(helper.make_tensor_value_info("limit", TensorProto.FLOAT, limit))
    outputs = [helper.make_tensor_value_info("P", TensorProto.UINT8, None)]
    return model_of(helper.make_graph([node], "graph", inputs, outputs))


@pytest.mark.parametrize("channels", [1, 3, 31, 32, 33, 64, 130])
@pytest.mark.parametrize("limit", ["one", "channel", "image"])
@pytest.mark.parametrize("threads", [1, 2])
def test_packing(channels: int, limit: str, threads: int) -> None:
    shapes: dict[str, list[Any]] = {"one": [], "channel": [channels], "image": ["N", 1, 1, 1]}
    shape = shapes[limit]
    model = pack_model(channels, shape)
    own, stock = session(model, threads=threads), session(model, plugin=False)
    rng = np.random.default_rng(channels)
    for size in [(1, 3, 5), (3, 2, 2), (2, 0, 4), (0, 2, 2), (2, 33, 70)]:
        x = awkward_floats(rng, (*size, channels))
        numbers = tuple(size[0] if one == "N" else one for one in shape)
        feeds = {"X": x, "limit": awkward_floats(rng, numbers) if numbers else np.array(0.25, np.float32)}
        found = own.run(None, feeds)[0]
        np.testing.assert_array_equal(found, stock.run(None, feeds)[0])
        with np.errstate(invalid="ignore"):
            below = np.where(x < feeds["limit"], -1, 1)
        np.testing.assert_array_equal(found, pack(below).astype("<u4").view(np.uint8))


def pool_model(channels: int, **attributes: Any) -> ModelProto:
    node = helper.make_node(f.PACKED_MAX_POOL, ["P"], ["Q"], name="pool", domain=f.DOMAIN, **attributes)
    source = [image("P", TensorProto.UINT8, ["H", "W", 4 * words_for(channels)])]
    outputs = [helper.make_tensor_value_info("Q", TensorProto.UINT8, None)]
    return model_of(helper.make_graph([node], "graph", source, outputs))


@pytest.mark.parametrize("channels", [1, 33, 64])
@pytest.mark.parametrize(
    ("kernel", "strides", "pads"),
    [
        ([2, 2], [2, 2], [0, 0, 0, 0]),
        ([3, 3], [2, 2], [1, 1, 1, 1]),
        ([3, 2], [1, 3], [2, 0, 1, 1]),
        ([5, 4], [5, 4], [0, 0, 0, 0]),
    ],
)
def test_pooling(channels: int, kernel: list[int], strides: list[int], pads: list[int]) -> None:
    model = pool_model(channels, kernel_shape=kernel, strides=strides, pads=pads)
    own, stock = session(model), session(model, plugin=False)
    rng = np.random.default_rng(channels)
    for size in [(1, 5, 4), (3, 8, 8), (2, 7, 11)]:
        words = pack(rng.choice(SIGNS, (*size, channels), p=[0.8, 0.2]))
        feeds = {"P": words.astype("<u4").view(np.uint8)}
        found = own.run(None, feeds)[0]
        np.testing.assert_array_equal(found, stock.run(None, feeds)[0])


def changed(layer: Layer, **attributes: Any) -> ModelProto:
    """The layer's file with attributes replaced, or left out where they are None."""
    model = layer.model()
    node = model.graph.node[0]
    kept = [attribute for attribute in node.attribute if attribute.name not in attributes]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items() if v is not None)
    return model


def with_constant(name: str, value: Array) -> ModelProto:
    model = Layer().model()
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(value, name))
    return model


def with_shape(index: int, *shape: Any) -> ModelProto:
    model = Layer().model()
    old = model.graph.input[index]
    old.CopyFrom(image(old.name, old.type.tensor_type.elem_type, list(shape)))
    return model


def hostile() -> dict[str, tuple[ModelProto, str]]:
    """What is refused and, in part, what is said. A crash would end the test process."""
    floats, octets = np.zeros(9, np.float32), np.zeros((8, 3, 3, 4), np.uint8)
    pool = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [0, 0, 0, 0]}
    return {
        "no channels": (changed(Layer(), channels=None), "attribute channels"),
        "channels of another word count": (changed(Layer(), channels=[32]), "W must hold 4 bytes a tap"),
        "channels huge": (changed(Layer(), channels=[2**62]), "channels must be in"),
        "no low": (changed(Layer(), low=None), "attribute low must be one float"),
        "low text": (changed(Layer(), low="a"), "attribute low must be one float"),
        "low above high": (changed(Layer(), low=3.0), "low must not be above high"),
        "low not a number": (changed(Layer(), low=float("nan")), "low must not be above high"),
        "stride 0": (changed(Layer(), strides=[0, 1]), "strides must be in"),
        "dilation too wide": (changed(Layer(), dilations=[100, 1]), "does not fit into the padded input"),
        "groups of half words": (
            changed(Layer(f.PACKED_CONV_THRESHOLD), group=2, channels=[33]),
            "must fill whole words of packed signs, found 33",
        ),
        "W of other bytes": (with_constant("W", octets), "W must hold 8 bytes a tap"),
        "slope long": (with_constant("slope", floats), "slope must have a value for each of the 8 filters"),
        "offset of rank 2": (with_constant("offset", floats[None]), "offset must have 1 dimensions, found 2"),
        "limit long": (with_constant("limit", floats), "limit must have a value for each of the 8 filters"),
        "P of other words": (with_shape(0, "H", "W", 12), "P must hold 8 bytes a pixel for 64 channels, found 12"),
        "P of rank 3": (with_shape(0, "H", 8), "P must have 4 dimensions, found 3"),
        "residual of other channels": (with_shape(1, "OH", "OW", 7), "residual must have the shape of Y"),
        "residual of other size": (with_shape(1, 4, "OW", 8), "residual must have the shape of Y"),
        "residual of rank 3": (with_shape(1, 1, 8), "residual must have 4 dimensions, found 3"),
        "limit of an odd shape": (pack_model(8, ["N", 5]), "limit must be one number, one a channel, or one an image"),
        "limit of other channels": (pack_model(8, [7]), "limit must be one number"),
        "pool without kernel": (pool_model(8, strides=[1, 1]), "kernel_shape must be two sizes"),
        "pool kernel 0": (pool_model(8, **{**pool, "kernel_shape": [0, 3]}), "kernel_shape must be two sizes"),
        "pool pads wide": (pool_model(8, **{**pool, "pads": [3, 0, 0, 0]}), "every window must meet the image"),
        "pool too large": (pool_model(8, **{**pool, "kernel_shape": [9, 3]}), "does not fit into the padded input"),
        "pool stride 0": (pool_model(8, **{**pool, "strides": [0, 1]}), "strides must be in"),
    }


@pytest.mark.parametrize("case", HOSTILE := hostile())
def test_hostile_files_are_refused(case: str) -> None:
    model, message = HOSTILE[case]
    types = {TensorProto.FLOAT: np.float32, TensorProto.UINT8: np.uint8}
    with pytest.raises(Exception, match=message):
        opened = session(model)
        feeds = {}
        for source in model.graph.input:
            kind = source.type.tensor_type
            shape = [dimension.dim_value or 5 for dimension in kind.shape.dim]
            feeds[source.name] = np.ones([1, *shape[1:]] if source.name in ("P", "X") else shape, types[kind.elem_type])
        opened.run(None, feeds)
