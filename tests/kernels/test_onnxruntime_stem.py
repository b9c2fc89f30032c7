"""The int8 stem's operator against stock ONNX Runtime, which runs the function that the same file carries."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bnnedge.export.runtimes.ort import OnnxRuntime
from bnnedge.export.runtimes.ort_bnnedge import OnnxRuntimeBnnedge
from bnnedge.export.targets.onnx import functions as f
from bnnedge.kernels import native
from tests.stock_onnxruntime import wrong_int8_convolution

Array = NDArray[Any]


@dataclass
class Stem:
    """One stem as a file of its own, with sums near ties and codes at both ends."""

    folds: bool = False
    pools: bool = False
    signs: bool = True
    channels: int = 3
    outputs: int = 9
    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    size: tuple[str | int, str | int] = ("H", "W")

    @property
    def op_type(self) -> str:
        return f.quantized_conv(self.folds, self.pools, self.signs)

    def constants(self) -> dict[str, Array]:
        rng = np.random.default_rng(self.channels + 7 * self.outputs)
        shape = (self.outputs, self.channels * (4 if self.folds else 1), *self.kernel)
        scales = (2.0 ** -rng.integers(3, 9, self.outputs)).astype(np.float32)
        scales[::3] = rng.uniform(1e-3, 0.1, len(scales[::3]))
        found: dict[str, Array] = {
            "x_scale": np.array(0.25, np.float32),
            "x_zero_point": np.array(119, np.uint8),
            "W": rng.integers(-128, 128, shape).astype(np.int8),
            "w_scale": scales,
            "y_scale": np.array(0.5, np.float32),
            "y_zero_point": np.array(3, np.uint8),
            "bias": rng.integers(-500, 500, self.outputs).astype(np.int32),
            "lowest": rng.normal(size=self.outputs).astype(np.float32),
        }
        found["bias"][4::5] *= 100_000
        if self.signs:
            found["limit"] = rng.normal(size=self.outputs).astype(np.float32)
        return found

    def model(self, computed: str = "") -> ModelProto:
        """``computed``: the constant that is not one but comes out of the graph."""
        constants = self.constants()
        attributes: dict[str, Any] = {"strides": list(self.strides), "pads": list(self.pads)}
        if self.pools:
            attributes |= {"pool_shape": [3, 2], "pool_strides": [2, 1], "pool_pads": [1, 0, 0, 1]}
        outputs = {"Y": TensorProto.FLOAT, "Q": TensorProto.UINT8}
        if not self.signs:
            del outputs["Q"]
        nodes = [
            helper.make_node(self.op_type, ["X", *constants], list(outputs), "stem", domain=f.DOMAIN, **attributes)
        ]
        images = [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", self.channels, *self.size])]
        if computed:
            value = constants.pop(computed)
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            images.append(helper.make_tensor_value_info("given", kind, value.shape))
            nodes.insert(0, helper.make_node("Identity", ["given"], [computed]))
        graph = helper.make_graph(
            nodes,
            "graph",
            images,
            [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        opsets = [helper.make_opsetid("", f.OPSET), helper.make_opsetid(f.DOMAIN, f.DOMAIN_VERSION)]
        return helper.make_model(graph, ir_version=8, opset_imports=opsets, functions=[f.function(self.op_type)])

    def image(self, batch: int, height: int, width: int) -> Array:
        """Multiples of half a code's step, and what is no number or beyond all codes."""
        rng = np.random.default_rng(batch + 31 * height + 97 * width)
        x = (rng.integers(-300, 301, (batch, self.channels, height, width)) / 8).astype(np.float32)
        x.flat[:: max(1, x.size // 5)] = 1e30
        x.flat[1 :: max(1, x.size // 3)] = -np.inf
        return x


def session(runtime: type[OnnxRuntime], model: ModelProto, threads: int = 1) -> Any:
    return runtime._inference_session(model.SerializeToString(), threads)


def check(stem: Stem, batch: int, height: int, width: int, threads: int = 1) -> None:
    if wrong := wrong_int8_convolution():
        pytest.skip(wrong)
    model, x = stem.model(), stem.image(batch, height, width)
    expected = session(OnnxRuntime, model).run(None, {"X": x})
    found = session(OnnxRuntimeBnnedge, model, threads).run(None, {"X": x})
    assert len(expected) == 1 + stem.signs and expected[0].shape[-1] == stem.outputs
    for e, a in zip(expected, found, strict=True):
        np.testing.assert_array_equal(e.view(np.uint8), a.view(np.uint8), strict=True)


pytestmark = pytest.mark.skipif(
    OnnxRuntimeBnnedge.unavailable() is not None, reason=str(OnnxRuntimeBnnedge.unavailable())
)


@pytest.mark.parametrize(("folds", "pools", "signs"), list(product((False, True), repeat=3)))
def test_each_operator(folds: bool, pools: bool, signs: bool) -> None:
    check(Stem(folds, pools, signs), 2, 10, 12)


@pytest.mark.parametrize("kernel", native.kernel_names() if native.available() else [])
@pytest.mark.parametrize(("channels", "outputs"), [(1, 1), (2, 15), (3, 33), (4, 64), (17, 31)])
def test_channels(channels: int, outputs: int, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNNEDGE_KERNEL", kernel)
    check(Stem(pools=True, channels=channels, outputs=outputs), 1, 9, 35)


@pytest.mark.parametrize(("kernel", "strides", "pads", "size"), [
    ((7, 7), (2, 2), (3, 3, 3, 3), (31, 30)), ((1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    ((1, 5), (1, 3), (0, 4, 0, 0), (2, 9)),
    ((4, 2), (3, 1), (1, 1, 3, 0), (7, 1)), ((3, 3), (2, 2), (2, 2, 2, 2), (1, 1)),
])  # fmt: skip
def test_windows(
    kernel: tuple[int, int], strides: tuple[int, int], pads: tuple[int, int, int, int], size: tuple[int, int]
) -> None:
    check(Stem(kernel=kernel, strides=strides, pads=pads), 1, *size)


def test_imagenet_form_with_threads() -> None:
    stem = Stem(folds=True, pools=True, outputs=64, kernel=(4, 4), pads=(2, 2, 1, 1))
    check(stem, 1, 96, 90, threads=2)


def test_no_image() -> None:
    check(Stem(pools=True), 0, 8, 8)


@pytest.mark.parametrize("computed", ["W", "x_scale", "bias", "limit"])
def test_parameters_that_the_graph_computes(computed: str) -> None:
    stem = Stem(pools=True)
    given, x = stem.constants()[computed], stem.image(1, 9, 7)
    expected = session(OnnxRuntimeBnnedge, stem.model()).run(None, {"X": x})
    found = session(OnnxRuntimeBnnedge, stem.model(computed)).run(None, {"X": x, "given": given})
    for e, a in zip(expected, found, strict=True):
        np.testing.assert_array_equal(e, a)


def test_sizes_change_between_runs_in_several_threads() -> None:
    if wrong := wrong_int8_convolution():
        pytest.skip(wrong)
    stem = Stem(pools=True, outputs=33)
    own, stock = session(OnnxRuntimeBnnedge, stem.model()), session(OnnxRuntime, stem.model())
    images = [stem.image(1 + i % 2, 5 + i % 4, 40 - i) for i in range(12)]
    expected = [stock.run(None, {"X": x}) for x in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: own.run(None, {"X": x}), images))
    for e, a in zip(expected, found, strict=True):
        np.testing.assert_array_equal(e[0], a[0])
        np.testing.assert_array_equal(e[1], a[1])


def test_shapes_are_inferred() -> None:
    own = session(OnnxRuntimeBnnedge, Stem(folds=True, pools=True, size=(20, 30)).model())
    assert [output.shape for output in own.get_outputs()] == [["N", 5, 15, 9], ["N", 5, 15, 4]]


@pytest.mark.parametrize(("name", "value", "message"), [
    ("pads", [1, 3, 1, 1], "pads must be in"), ("strides", [0, 1], "strides must be in"),
    ("pool_pads", [3, 0, 0, 0], "pool pads must be in"), ("pool_shape", [3], "must be a list of 2 integers, found 1"),
    ("strides", [1, 2**40], "strides must be in"), ("pads", [1, 1, -1, 1], "pads must be in"),
])  # fmt: skip
def test_bad_attributes(name: str, value: list[int], message: str) -> None:
    model = Stem(pools=True).model()
    node = model.graph.node[0]
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.ints[:] = value
    with pytest.raises(Exception, match=message):
        session(OnnxRuntimeBnnedge, model)


@pytest.mark.parametrize(("name", "value", "message"), [
    ("x_scale", np.float32(0), "scale of the input must be finite and above 0"),
    ("y_scale", np.float32(np.nan), "scale of the output must be finite and above 0"),
    ("w_scale", np.full(9, np.inf, np.float32), "must be finite"),
    ("w_scale", np.ones(8, np.float32), "must have a value for each of the 9 filters of W, found 8"),
    ("bias", np.ones(10, np.int32), "must have a value for each of the 9 filters of W, found 10"),
    ("W", np.ones((9, 3, 3), np.int8), "W must have 4 dimensions, found 3"),
    ("W", np.ones((9, 3, 0, 3), np.int8), "kernel and strides must be in"),
    ("limit", np.ones(2, np.float32), "limit must have a value for each"),
])  # fmt: skip
def test_bad_parameters(name: str, value: Array, message: str) -> None:
    model = Stem(pools=True).model()
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))
    with pytest.raises(Exception, match=message):
        session(OnnxRuntimeBnnedge, model).run(None, {"X": Stem().image(1, 9, 9)})


def test_bad_images() -> None:
    own = session(OnnxRuntimeBnnedge, Stem(folds=True, pools=True).model())
    with pytest.raises(Exception, match="an input of 9 x 8 cannot be folded"):
        own.run(None, {"X": Stem().image(1, 9, 8)})
    wide = session(OnnxRuntimeBnnedge, Stem(kernel=(5, 5), pads=(0, 0, 0, 0)).model())
    with pytest.raises(Exception, match="the filter does not fit into an input of 4 x 8"):
        wide.run(None, {"X": Stem().image(1, 4, 8)})
