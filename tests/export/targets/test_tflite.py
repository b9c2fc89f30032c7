"""The LCE target in LCE's interpreter and in LiteRT, against a float64 evaluation of the same graph."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnnedge.errors import ExportError, MissingDependencyError
from bnnedge.export import graph as g
from bnnedge.export.runtimes import lce as lce_module
from bnnedge.export.runtimes.lce import Lce
from bnnedge.export.runtimes.litert import LiteRt
from bnnedge.export.runtimes.runtime import Runtime
from bnnedge.export.targets.tflite.bit_forms import bconv2d_options, bmaxpool2d_options
from bnnedge.export.targets.tflite.lowering import SAME, VALID
from bnnedge.export.targets.tflite.reader import parse_model
from bnnedge.export.targets.tflite.target import LceTarget
from bnnedge.export.targets.tflite.writer import TfliteWriter, schema
from bnnedge.export.window import Window
from tests.export.digests import without_digest

ROUND_OFF = 2.0**-24
"""Unit round-off u of float32."""
TARGET = LceTarget()
needs_lce = pytest.mark.skipif(Lce.unavailable() is not None, reason=str(Lce.unavailable()))
Array = NDArray[Any]
Shape = tuple[int, ...]
Spec = tuple[type[g.Node], dict[str, Any]]
Build = Callable[..., g.Graph]
Evaluate = Callable[[g.Graph, NDArray[np.float32]], dict[str, NDArray[np.float64]]]


class IndirectLce(Lce):
    kernel = "indirect"


class ReferenceLce(Lce):
    kernel = "reference"


KERNELS = (Lce, IndirectLce, ReferenceLce)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240521)


SIGN: Spec = (g.Binarize, {})


def binary_conv(rng: np.random.Generator, weight_shape: Shape, **fields: Any) -> Spec:
    weight = rng.choice([-1, 1], weight_shape).astype(np.int8)
    outputs = weight_shape[0]
    return g.BinaryConv2d, {"weight": weight, "multiplier": np.ones(outputs), "bias": np.zeros(outputs), **fields}


def run(graph: g.Graph, x: Array, runtime: type[Runtime] = Lce) -> Array:
    return runtime.open(TARGET.write(graph)).run(x)


def codes(data: bytes) -> list[str]:
    return [op.code for op in parse_model(data).operators]


def magnitude(graph: g.Graph, x: Array, evaluate: Evaluate) -> Array:
    """The graph on absolute values throughout: the sum of the sizes of all terms of each output."""
    nodes = []
    for node in graph.nodes:
        arrays: dict[str, Any] = {k: np.abs(v) for k, v in vars(node).items() if isinstance(v, np.ndarray)}
        made = g.Add(name=node.name, inputs=node.inputs, output=node.output) if isinstance(node, g.Sub) else node
        nodes.append(replace(made, **arrays))
    return evaluate(replace(graph, nodes=nodes), np.abs(x))[graph.output]


CHANNELS = [1, 3, 31, 32, 33, 63, 64, 65]
UNFOLDED = ["PAD", "LceBconv2d", "GATHER", "GATHER", "ADD"]
GEOMETRIES: dict[str, tuple[Shape, Shape, dict[str, Any], list[str]]] = {
    # name: map, filter, settings, operators for an even number of channels
    "3x3": ((6, 7), (3, 3), {}, ["LceBconv2d"]),
    "3x3 same": ((6, 7), (3, 3), {"padding": (1, 1)}, ["LceBconv2d"]),
    "3x3 on 3x3": ((3, 3), (3, 3), {"padding": (1, 1)}, ["LceBconv2d"]),
    "stride 2, odd": ((7, 9), (3, 3), {"padding": (1, 1), "stride": (2, 2)}, ["LceBconv2d"]),
    "stride 2, even": ((8, 6), (3, 3), {"padding": (1, 1), "stride": (2, 2)}, UNFOLDED),
    "stride 2, 1x1": ((7, 8), (1, 1), {"stride": (2, 2)}, ["LceBconv2d"]),
    "filter larger than map": ((2, 2), (3, 3), {"padding": (1, 1)}, ["PAD", "LceBconv2d", "ADD"]),
    "3x3 on 1x1": ((1, 1), (3, 3), {"padding": (1, 1)}, ["PAD", "LceBconv2d", "ADD"]),
    "5x5 on 4x4": ((4, 4), (5, 5), {"padding": (2, 2)}, ["PAD", "LceBconv2d", "ADD"]),
    "dilation": ((7, 8), (3, 3), {"padding": (2, 2), "dilation": (2, 2)}, ["LceBconv2d"]),
    "dilation beyond map": ((4, 6), (3, 3), {"padding": (2, 2), "dilation": (2, 2)}, UNFOLDED),
    "even filter": ((5, 6), (2, 4), {"padding": (1, 2)}, UNFOLDED),
    "uneven all": (
        (9, 6), (3, 2), {"padding": (2, 1), "stride": (2, 3), "dilation": (2, 1)},
        ["PAD", "LceBconv2d", "GATHER", "ADD"],
    ),
    "padding wider than filter": ((4, 5), (1, 1), {"padding": (1, 2)}, UNFOLDED),
    "one axis": ((5, 4), (1, 3), {"padding": (0, 1), "stride": (1, 2)}, ["PAD", "LceBconv2d", "ADD"]),
}  # fmt: skip


@needs_lce
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_integers(channels: int, name: str, rng: np.random.Generator, build: Build, evaluate: Evaluate) -> None:
    size, kernel, settings, _ = GEOMETRIES[name]
    graph = build((2, channels, *size), SIGN, binary_conv(rng, (5, channels, *kernel), **settings))
    x = rng.standard_normal((2, channels, *size)).astype(np.float32)
    x[0, 0, 0, 0] = 0.0
    expected = evaluate(graph, x)
    data = TARGET.write(graph)
    for runtime in KERNELS:
        np.testing.assert_array_equal(runtime.open(data).run(x), expected["t1"])
    _, signs = Lce.tap(data, x)
    np.testing.assert_array_equal(signs["n1"], expected["t0"])
    np.testing.assert_array_equal(Lce.integers(data, "n1", signs["n1"]), expected["t1"])


@pytest.mark.parametrize("name", GEOMETRIES)
def test_padding_is_written_as_documented(name: str, rng: np.random.Generator, build: Build) -> None:
    size, kernel, settings, operators = GEOMETRIES[name]
    graph = build((1, 64, *size), SIGN, binary_conv(rng, (5, 64, *kernel), **settings))
    assert codes(TARGET.write(graph)) == ["LceQuantize", *operators]


@needs_lce
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("channels", [3, 40])
def test_multiplier_and_bias(
    channels: int, name: str, rng: np.random.Generator, build: Build, evaluate: Evaluate
) -> None:
    size, kernel, settings, _ = GEOMETRIES[name]
    multiplier, bias = np.array([1.7, -0.3, 0.0, 1e-3, -45.0]), np.array([0.1, -0.2, 3.3, 1e-4, 100.0])
    conv = binary_conv(rng, (5, channels, *kernel), multiplier=multiplier, bias=bias, **settings)
    graph = build((1, channels, *size), SIGN, conv)
    x = rng.standard_normal((1, channels, *size)).astype(np.float32)
    # LCE computes 2p * -m + (b + K m), each term at most 2 K |m| + |b|, in 3 roundings; the stored correction and its
    # sum are 2 more.
    bound = 5 * ROUND_OFF * (2 * np.prod(conv[1]["weight"].shape[1:]) * np.abs(multiplier) + np.abs(bias))
    for runtime in KERNELS:
        error = np.abs(run(graph, x, runtime) - evaluate(graph, x)[graph.output])
        assert (error <= bound[:, None, None]).all()


@needs_lce
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("channels", [31, 64])
def test_thresholds(channels: int, name: str, rng: np.random.Generator, build: Build, evaluate: Evaluate) -> None:
    size, kernel, settings, _ = GEOMETRIES[name]
    k = channels * int(np.prod(kernel))
    limits = [-(2**31), -k - 1, -k, 1 - k, -3, -1, 0, 1, 2, 5, k - 1, k, k + 1, k + 2, 2**31 - 1]
    threshold = np.array(limits + [4] * 18, np.int32)
    first = binary_conv(rng, (33, channels, *kernel), threshold=threshold, **settings)
    graph = build((1, channels, *size), SIGN, first, binary_conv(rng, (4, 33, 1, 1)))
    x = rng.standard_normal((1, channels, *size)).astype(np.float32)
    expected = evaluate(graph, x)
    data = TARGET.write(graph)
    for runtime in KERNELS:
        np.testing.assert_array_equal(runtime.open(data).run(x), expected["t2"])
    outputs, signs = Lce.tap(data, x)
    np.testing.assert_array_equal(outputs["t2"], expected["t2"])
    np.testing.assert_array_equal(signs["n2"], expected["t1"])
    np.testing.assert_array_equal(Lce.integers(data, "n2", signs["n2"]), expected["t2"])


@needs_lce
def test_every_sum_against_every_threshold(build: Build, rng: np.random.Generator, evaluate: Evaluate) -> None:
    """1x1 filters of 33 channels of +1: the sum is 33 less twice the number of -1 in the pixel."""
    threshold = np.arange(-35, 37, dtype=np.int32)
    conv = binary_conv(rng, (72, 33, 1, 1), weight=np.ones((72, 33, 1, 1), np.int8), threshold=threshold)
    x = np.where(np.arange(33)[:, None] < np.arange(34), -1, 1)[None, :, None].astype(np.float32)
    for padding in ((0, 0), (0, 1)):
        padded = (conv[0], {**conv[1], "padding": padding})
        graph = build(x.shape, SIGN, padded)
        np.testing.assert_array_equal(run(graph, x), evaluate(graph, x)[graph.output])


@needs_lce
@pytest.mark.parametrize(
    ("channels", "outputs", "groups", "reason"),
    [(64, 4, 2, ""), (128, 8, 4, ""), (6, 4, 2, "3 channels"), (5, 5, 5, "1 channels"), (4, 8, 4, "1 channels")],
)
@pytest.mark.parametrize("padding", [(0, 0), (1, 1)])
@pytest.mark.parametrize("has_threshold", [False, True])
def test_groups(
    channels: int,
    outputs: int,
    groups: int,
    reason: str,
    padding: g.Pair,
    has_threshold: bool,
    rng: np.random.Generator,
    build: Build,
    evaluate: Evaluate,
) -> None:
    settings: dict[str, Any] = {"groups": groups, "padding": padding, "stride": (2, 2)}
    if has_threshold:
        settings["threshold"] = rng.integers(-4, 5, outputs).astype(np.int32)
    else:
        settings["multiplier"] = rng.choice([-2.0, 0.0, 0.5], outputs)
    graph = build((2, channels, 6, 6), SIGN, binary_conv(rng, (outputs, channels // groups, 3, 3), **settings))
    x = rng.standard_normal((2, channels, 6, 6)).astype(np.float32)
    expected = evaluate(graph, x)
    data = TARGET.write(graph)
    np.testing.assert_array_equal(Lce.open(data).run(x), expected["t1"])
    _, signs = Lce.tap(data, x)
    np.testing.assert_array_equal(signs["n1"], expected["t0"])
    plain: dict[str, Any] = {"multiplier": np.ones(outputs), "bias": np.zeros(outputs), "threshold": None}
    sums = replace(graph, nodes=[graph.nodes[0], replace(graph.nodes[1], **plain)])
    np.testing.assert_array_equal(Lce.integers(data, "n1", signs["n1"]), evaluate(sums, x)["t1"])
    (row,) = TARGET.describe(data)
    assert reason in row.reason
    assert (row.binary_weights > 0) == (reason == "")


@needs_lce
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel": (2, 2), "stride": (2, 2)},
        {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)},
        {"kernel": (3, 2), "stride": (1, 2), "padding": (1, 1)},
    ],
)
@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_max_pool_of_bits(
    channels: int, settings: dict[str, Any], size: Shape, rng: np.random.Generator, build: Build, evaluate: Evaluate
) -> None:
    conv = binary_conv(rng, (3, channels, 1, 1))
    graph = build((1, channels, *size), SIGN, (g.MaxPool2d, settings), conv)
    x = rng.standard_normal((1, channels, *size)).astype(np.float32) - 1
    assert "LceBMaxPool2d" in codes(TARGET.write(graph))
    np.testing.assert_array_equal(run(graph, x), evaluate(graph, x)[graph.output])


def float_cases() -> dict[str, tuple[int, Shape, list[Spec]]]:
    """For every float node: the number of float32 roundings on the way to one output, input shape and chain."""
    n = np.random.default_rng(1).standard_normal
    conv = {"weight": n((6, 3, 3, 2)), "bias": n(6), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    stem = {"weight": n((4, 3, 7, 7)), "bias": n(4), "stride": (2, 2), "padding": (3, 3)}
    affine: Spec = (g.Affine, {"multiplier": np.array([-1.5, 0.0, 2.0]), "bias": n(3)})
    prelu: Spec = (g.PRelu, {"slope": np.array([0.25, -0.5, 0.0])})
    pointwise: Spec = (g.Conv2d, {"weight": n((3, 3, 1, 1)), "bias": n(3)})
    mean: Spec = (g.Mean, {"axes": (2, 3), "keepdims": True})
    both = {"inputs": ("image", "t0")}
    square: Spec = (g.Mul, {"inputs": ("image", "image")})
    shift: Spec = (g.Affine, {"multiplier": np.ones(3), "bias": np.full(3, 0.5)})
    flat: Spec = (g.Reshape, {"shape": (168,)})
    relu: Spec = (g.Clip, {"low": 0.0, "high": np.inf})
    linear: Spec = (g.Linear, {"weight": n((5, 168)), "bias": n(5)})
    image = (2, 3, 8, 7)
    return {
        "conv": (19, image, [(g.Conv2d, conv)]),
        "resnet stem": (148, image, [(g.Conv2d, stem)]),
        "same conv": (28, image, [(g.Conv2d, {"weight": n((4, 3, 3, 3)), "bias": n(4), "padding": (1, 1)})]),
        "depthwise conv": (10, (2, 6, 5, 4), [(g.Conv2d, {"weight": n((6, 1, 3, 3)), "bias": n(6), "groups": 6})]),
        "depthwise, two each": (
            10, (2, 3, 5, 4), [(g.Conv2d, {"weight": n((6, 1, 3, 3)), "bias": n(6), "groups": 3, "stride": (2, 2)})],
        ),
        "grouped conv": (28, (2, 6, 5, 4), [(g.Conv2d, {"weight": n((4, 3, 3, 3)), "bias": n(4), "groups": 2})]),
        "linear": (34, (2, 33), [(g.Linear, {"weight": n((5, 33)), "bias": n(5)})]),
        "flatten, linear": (169, image, [flat, linear]),
        "flatten, relu, linear": (169, image, [flat, relu, linear]),
        "pool, flatten, linear": (
            61, image, [mean, (g.Reshape, {"shape": (3,)}), (g.Linear, {"weight": n((2, 3)), "bias": n(2)})],
        ),
        "affine": (2, image, [affine]),
        "affine of rows": (2, (2, 3), [affine]),
        "affine of sequences": (2, (2, 3, 5), [affine]),
        "affine, shift only": (1, image, [shift]),
        "affine, scale only": (1, image, [(g.Affine, {"multiplier": n(3), "bias": np.zeros(3)})]),
        "affine, identity": (0, image, [(g.Affine, {"multiplier": np.ones(3), "bias": np.zeros(3)})]),
        "relu": (0, image, [relu]),
        "conv, relu": (4, image, [pointwise, relu]),
        "conv, relu6": (4, image, [pointwise, (g.Clip, {"low": 0.0, "high": 6.0})]),
        "affine, hard tanh": (2, image, [affine, (g.Clip, {"low": -1.0, "high": 1.0})]),
        "clip above": (0, image, [(g.Clip, {"low": -np.inf, "high": 0.5})]),
        "clip below": (0, image, [(g.Clip, {"low": -0.25, "high": np.inf})]),
        "clip": (0, image, [(g.Clip, {"low": -0.25, "high": 0.75})]),
        "no clip": (0, image, [(g.Clip, {"low": -np.inf, "high": np.inf})]),
        "hard tanh": (0, image, [(g.Clip, {"low": -1.0, "high": 1.0})]),
        "prelu": (1, image, [prelu]),
        "prelu of rows": (1, (2, 3), [prelu]),
        "prelu of sequences": (1, (2, 3, 5), [prelu]),
        "add": (5, image, [pointwise, (g.Add, both)]),
        "sub": (5, image, [pointwise, (g.Sub, both)]),
        "sub, broadcast": (58, image, [mean, (g.Sub, both)]),
        "mul": (1, image, [square]),
        "div by sqrt": (5, image, [square, shift, (g.Sqrt, {}), (g.Div, {"inputs": ("image", "t2")})]),
        "mean": (57, image, [(g.Mean, {"axes": (2, 3), "keepdims": False})]),
        "mean of channels": (4, image, [(g.Mean, {"axes": (1,), "keepdims": False})]),
        "mean, one axis": (8, image, [(g.Mean, {"axes": (3,), "keepdims": True})]),
        "mean, one axis dropped": (9, image, [(g.Mean, {"axes": (2,), "keepdims": False})]),
        "mean of everything": (169, image, [(g.Mean, {"axes": (1, 2, 3), "keepdims": True})]),
        "max pool": (0, image, [(g.MaxPool2d, {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 1)})]),
        "max pool, same": (0, (2, 3, 7, 7), [(g.MaxPool2d, {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)})]),
        "avg pool": (7, image, [(g.AvgPool2d, {"kernel": (3, 2), "stride": (2, 1)})]),
        "reshape": (0, image, [flat]),
        "reshape to image": (0, (2, 12), [(g.Reshape, {"shape": (3, 2, 2)})]),
        "reshape of image": (0, image, [(g.Reshape, {"shape": (7, 3, 8)})]),
        "subsample": (0, image, [(g.Subsample, {"step": (2, 3)})]),
        "pad channels": (0, image, [(g.PadChannels, {"before": 1, "after": 4})]),
        "pad rows": (0, (2, 3), [(g.PadChannels, {"before": 2, "after": 0})]),
        "concat": (4, image, [pointwise, (g.Concat, {"inputs": ("t0", "image", "t0")})]),
        "concat of rows": (0, (2, 3), [(g.Concat, {"inputs": ("image", "image")})]),
    }  # fmt: skip


FLOAT_CASES = float_cases()


@needs_lce
@pytest.mark.parametrize("case", FLOAT_CASES)
def test_float_nodes(case: str, rng: np.random.Generator, build: Build, evaluate: Evaluate) -> None:
    roundings, shape, specs = FLOAT_CASES[case]
    graph = build(shape, *specs)
    data = TARGET.write(graph)
    for runtime, batch in ((Lce, 2), (LiteRt, 1), (LiteRt, 3)):
        x = rng.standard_normal((batch, *shape[1:])).astype(np.float32)
        output = runtime.open(data).run(x)
        expected = evaluate(graph, x)[graph.output]
        assert output.shape == expected.shape
        # n roundings in any order stay below n u / (1 - n u) of the sum of the terms' sizes (Higham, lemma 3.1).
        bound = roundings * ROUND_OFF / (1 - roundings * ROUND_OFF) * magnitude(graph, x, evaluate)
        assert (np.abs(output - expected) <= bound).all()


@needs_lce
@pytest.mark.parametrize("kind", ["sigmoid", "tanh", "softmax"])
def test_activations(kind: str, rng: np.random.Generator, build: Build, evaluate: Evaluate) -> None:
    graph = build((1, 33), (g.Activation, {"kind": kind}))
    x = 4 * rng.standard_normal((3, 33)).astype(np.float32)
    for runtime in (Lce, LiteRt):
        # The kernels are polynomial approximations of exp, good to some units in the last place; results are below 1.
        np.testing.assert_allclose(run(graph, x, runtime), evaluate(graph, x)["t0"], rtol=0, atol=16 * ROUND_OFF)


def test_activations_are_fused(build: Build) -> None:
    _, shape, specs = FLOAT_CASES["conv, relu"]
    assert codes(TARGET.write(build(shape, *specs))) == ["CONV_2D"]
    _, shape, specs = FLOAT_CASES["affine, hard tanh"]
    assert codes(TARGET.write(build(shape, *specs))) == ["MUL", "ADD"]


def test_an_activation_is_not_fused_into_a_tensor_with_other_readers(build: Build) -> None:
    _, shape, specs = FLOAT_CASES["conv, relu"]
    graph = build(shape, *specs, (g.Add, {"inputs": ("t0", "t1")}))
    assert codes(TARGET.write(graph)) == ["CONV_2D", "RELU", "ADD"]


def test_a_flattened_map_needs_no_transpose_before_a_dense_layer(build: Build) -> None:
    _, shape, specs = FLOAT_CASES["flatten, linear"]
    assert codes(TARGET.write(build(shape, *specs))) == ["RESHAPE", "FULLY_CONNECTED"]


@needs_lce
@pytest.mark.parametrize("channels", [3, 33])
@pytest.mark.parametrize("sign_first", [False, True])
def test_binary_dense_layer_on_a_flattened_map(
    channels: int, sign_first: bool, rng: np.random.Generator, build: Build, evaluate: Evaluate
) -> None:
    features = channels * 6
    flat, image = (g.Reshape, {"shape": (features,)}), (g.Reshape, {"shape": (features, 1, 1)})
    before = [SIGN, flat] if sign_first else [flat, SIGN]
    dense = binary_conv(rng, (5, features, 1, 1))
    graph = build((2, channels, 3, 2), *before, image, dense, (g.Reshape, {"shape": (5,)}))
    x = rng.standard_normal((2, channels, 3, 2)).astype(np.float32)
    np.testing.assert_array_equal(run(graph, x), evaluate(graph, x)[graph.output])


def small_network(build: Build, rng: np.random.Generator, **metadata: Any) -> g.Graph:
    """Stem, a strided binary block with a shortcut, a layer with bits out, head; all kinds of padding."""
    n = rng.standard_normal
    return build(
        (2, 3, 12, 12),
        (g.Conv2d, {"weight": n((32, 3, 3, 3)), "bias": n(32), "padding": (1, 1), "reason": "first layer"}),
        SIGN,
        binary_conv(rng, (33, 32, 3, 3), padding=(1, 1), stride=(2, 2), multiplier=n(33), bias=n(33)),
        SIGN,
        binary_conv(rng, (40, 33, 3, 3), padding=(1, 1), threshold=rng.integers(-9, 9, 40).astype(np.int32)),
        binary_conv(rng, (33, 40, 3, 3), padding=(1, 1), multiplier=n(33) / 20, bias=n(33)),
        (g.Add, {"inputs": ("t5", "t2")}),
        (g.Mean, {"axes": (2, 3), "keepdims": False}),
        (g.Linear, {"weight": n((10, 33)), "bias": n(10), "reason": "last layer"}),
        **metadata,
    )


@needs_lce
def test_network(build: Build, rng: np.random.Generator, evaluate: Evaluate) -> None:
    graph = small_network(build, rng)
    # The stem's inputs and filters are multiples of 1/8 below 2: its sums are exact and no sign depends on rounding.
    stem = graph.nodes[0]
    assert isinstance(stem, g.Conv2d)
    stem.weight, stem.bias = np.clip(np.round(8 * stem.weight) / 8, -2, 2), np.round(8 * stem.bias) / 8
    x = np.clip(np.round(8 * rng.standard_normal((3, 3, 12, 12))) / 8, -2, 2).astype(np.float32)
    data = TARGET.write(graph)
    expected = evaluate(graph, x)
    outputs, signs = Lce.tap(data, x)
    assert list(signs) == ["n2", "n4", "n5"]
    for layer, tensor in (("n2", "t1"), ("n4", "t3"), ("n5", "t4")):
        np.testing.assert_array_equal(signs[layer], expected[tensor])
    np.testing.assert_array_equal(outputs[graph.output], Lce.open(data).run(x))
    # Some 400 terms of at most 300 reach a logit, each in fewer than 50 roundings; 1e-3 is far from one sign's weight.
    np.testing.assert_allclose(outputs[graph.output], expected[graph.output], rtol=0, atol=1e-3)


@needs_lce
def test_threads_do_not_change_the_result(build: Build, rng: np.random.Generator) -> None:
    data = TARGET.write(small_network(build, rng))
    x = rng.standard_normal((2, 3, 12, 12)).astype(np.float32)
    np.testing.assert_array_equal(Lce.open(data, threads=2).run(x), Lce.open(data).run(x))


def test_option_blobs_are_those_of_the_lce_converter() -> None:
    blobs = {
        bconv2d_options(40, (1, 1), (1, 1), SAME, pad_values=1): (
            "1ad58b5704dac7d98930fae2d5fd0cc1063e29f571505bbc877b4bed86f0fd47"
        ),
        bconv2d_options(64, (2, 2), (1, 1), VALID): "1a4e155ff2655bb611165a0d168cf559a66b968aa1e91e4b6adb07a5eaffdf56",
        bmaxpool2d_options((2, 2), (2, 2), VALID): "4bf8775bf58783c03446fd276c7d4b31851a9fcafa7d8b6f3b754a3bd4ba564d",
    }
    for blob, digest in blobs.items():
        assert hashlib.sha256(blob).hexdigest() == digest


def test_metadata_and_rows_come_from_the_file(build: Build, rng: np.random.Generator) -> None:
    metadata = {"producer": "bnnedge", "classes": ["a", "ü"], "input_shape": [3, 12, 12]}
    data = TARGET.write(small_network(build, rng, **metadata))
    assert {key: value for key, value in TARGET.read_metadata(data).items() if key != "digest"} == metadata
    rows = {row.name: row for row in TARGET.describe(data)}
    assert list(rows) == ["n0", "n2", "n4", "n5", "n8"]
    stem, strided, bits, head = rows["n0"], rows["n2"], rows["n4"], rows["n8"]
    assert (stem.kind, stem.float_params, stem.reason) == ("conv 3x3", 32 * 28, "first layer")
    assert (stem.input_shape, stem.output_shape) == ((3, 12, 12), (32, 12, 12))
    assert stem.float_macs == 32 * 27 * 144
    assert (strided.kind, strided.binary_weights) == ("binary conv 3x3", 33 * 32 * 9)
    assert (strided.input_shape, strided.output_shape) == ((32, 12, 12), (33, 6, 6))
    assert strided.binary_macs == 33 * 32 * 9 * 36
    # Multiplier, bias and the correction for the windows at the top, the left, the corner and elsewhere.
    assert strided.float_params == 6 * 33
    assert strided.weight_bytes == 33 * 9 * 4 + 4 * 6 * 33
    assert (bits.binary_weights, bits.input_shape, bits.output_shape) == (40 * 33 * 9, (33, 6, 6), (40, 6, 6))
    assert (head.kind, head.input_shape, head.output_shape) == ("linear", (33,), (10,))
    assert (head.reason, head.float_macs, head.weight_bytes) == ("last layer", 330, 4 * 340)


def test_files_are_reproducible(build: Build, rng: np.random.Generator) -> None:
    graph = small_network(build, rng)
    assert TARGET.write(graph) == TARGET.write(graph)


def test_buffers_are_aligned_and_leave_room_behind_them(build: Build, rng: np.random.Generator) -> None:
    data = np.frombuffer(TARGET.write(small_network(build, rng)), np.uint8)
    model = schema().Model.GetRootAs(data)
    start = data.__array_interface__["data"][0]
    found = 0
    for index in range(model.BuffersLength()):
        buffer = model.Buffers(index)
        if buffer.DataLength():
            offset = buffer.DataAsNumpy().__array_interface__["data"][0] - start
            assert offset % 16 == 0
            assert offset + buffer.DataLength() + 32 <= len(data)
            found += 1
    assert found > 10


def test_file_size_of_a_resnet18(build: Build, rng: np.random.Generator) -> None:
    n = rng.standard_normal
    specs: list[Spec] = [(g.Conv2d, {"weight": n((64, 3, 3, 3)), "bias": n(64), "padding": (1, 1)})]
    channels, previous = [64] * 4 + [128] * 4 + [256] * 4 + [512] * 4, 64
    for width in channels:
        stride = (2, 2) if width != previous else (1, 1)
        shape = (width, previous, 3, 3)
        conv = binary_conv(rng, shape, padding=(1, 1), stride=stride, multiplier=n(width), bias=n(width))
        specs += [SIGN, conv]
        previous = width
    specs += [(g.Mean, {"axes": (2, 3), "keepdims": False}), (g.Linear, {"weight": n((10, 512)), "bias": n(10)})]
    graph = build((1, 3, 32, 32), *specs)
    bits = floats = 0
    for node in graph.nodes:
        if isinstance(node, g.BinaryConv2d):
            bits, floats = bits + node.weight.size, floats + 2 * len(node.weight)
        elif isinstance(node, g.Conv2d | g.Linear):
            floats += node.weight.size + node.bias.size
    assert bits > 10_000_000
    assert len(TARGET.write(graph)) <= 1.05 * (bits / 8 + 4 * floats)


def test_equal_constants_are_stored_once() -> None:
    def size(values: list[float]) -> int:
        writer = TfliteWriter()
        source = writer.tensor("x", (1, 4096))
        for index, value in enumerate(values):
            constant = writer.constant(f"c{index}", np.full(4096, value, np.float32))
            source = writer.builtin("ADD", [source, constant], writer.tensor(f"y{index}", (1, 4096)))
        return len(writer.finish([0], [source], {}))

    assert 16384 <= size([1.0, 2.0]) - size([1.0, 1.0]) <= 16384 + 64


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_edges_make_valid_windows_the_padded_ones(stride: int, dilation: int) -> None:
    for size in range(1, 10):
        for kernel in range(1, 6):
            for padding in range(kernel):
                window = Window(size, kernel, stride, padding, dilation)
                if window.output < 1:
                    continue
                before, after = window.edges
                padded = Window(before + size + after, kernel, stride, 0, dilation)
                assert padded.output == window.output
                assert padded.inside().all()
                assert before == padding and 0 <= after <= padding


def damaged(data: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "text": b"this is not a flatbuffer at all",
        "other identifier": data[:4] + b"ONNX" + data[8:],
        "wild root": b"\xff\xff\xff\x7f" + data[4:],
        "head only": data[:64],
        "half": data[: len(data) // 2],
        "most": data[: len(data) * 9 // 10],
        "nothing but the identifier": b"\0\0\0\0TFL3" + bytes(64),
    }


@pytest.mark.parametrize("kind", damaged(bytes(8)))
def test_damaged_files(kind: str, build: Build, rng: np.random.Generator) -> None:
    data = damaged(TARGET.write(small_network(build, rng)))[kind]
    readers: list[Callable[[bytes], object]] = [TARGET.describe, TARGET.read_metadata, Lce.open, LiteRt.open]
    for read in readers:
        with pytest.raises(ExportError, match="TFLite") as error:
            read(data)
        assert "\n" not in str(error.value)


def test_names_that_are_not_text(build: Build, rng: np.random.Generator) -> None:
    data = without_digest(TARGET.write(small_network(build, rng)))
    rows = TARGET.describe(data)
    model = parse_model(data)
    inside = {model.name(tensor).encode() for op in model.operators for tensor in op.inputs if model.bytes_of(tensor)}
    assert inside
    for name in inside:
        odd = data.replace(name + b"\0", b"\xff\x1b" + name[2:] + b"\0")
        assert odd != data
        found = TARGET.describe(odd)
        assert sum(row.weight_bytes for row in found) == sum(row.weight_bytes for row in rows)
        assert all(row.name.isprintable() for row in found)
        LiteRt.open(odd)
    for tensor in (*model.inputs, *model.outputs):
        name = model.name(tensor).encode()
        odd = data.replace(name + b"\0", b"\xff" + name[1:] + b"\0")
        assert odd != data
        readers: list[Callable[[bytes], object]] = [TARGET.describe, TARGET.read_metadata, LiteRt.open]
        for read in readers:
            with pytest.raises(ExportError, match="the TFLite file is damaged"):
                read(odd)


def test_flipped_bytes_are_read_or_refused_but_never_crash(build: Build, rng: np.random.Generator) -> None:
    data = without_digest(TARGET.write(small_network(build, rng)))
    refused = 0
    for position in rng.integers(0, len(data), 200):
        flipped = bytearray(data)
        flipped[position] ^= 0xFF
        try:
            TARGET.describe(bytes(flipped))
        except ExportError:
            refused += 1
    assert 0 < refused < 200


def test_a_binary_convolution_without_options_is_refused() -> None:
    writer = TfliteWriter()
    source = writer.tensor("bits", (1, 3, 3, 1), "int32")
    weight = writer.constant("weight", np.zeros((1, 3, 3, 1), np.int32))
    output = writer.tensor("y", (1, 1, 1, 1))
    writer.custom("LceBconv2d", [source, weight, -1, -1, -1], output)
    with pytest.raises(ExportError, match="LceBconv2d"):
        parse_model(writer.finish([source], [output], {}))


@needs_lce
@pytest.mark.parametrize("pad_values", [0, 1])
def test_a_file_of_another_writer(pad_values: int) -> None:
    """SAME at stride 2 on an even map, as LCE's converter writes it: read and run, but not taken for PyTorch's."""
    writer = TfliteWriter()
    image = writer.tensor("serving_default_x:0", (1, 4, 4, 33))
    bits = writer.custom("LceQuantize", [image], writer.tensor("q", (1, 4, 4, 2), "int32"))
    weight = writer.constant("quant_conv", np.zeros((3, 3, 3, 2), np.int32))
    gamma, beta = (writer.constant(f"c{i}", np.full(3, v, np.float32)) for i, v in enumerate((1.0, 0.0)))
    output = writer.tensor("model/quant_conv/Conv2D", (1, 2, 2, 3))
    options = bconv2d_options(33, (2, 2), (1, 1), SAME, pad_values)
    writer.custom("LceBconv2d", [bits, weight, gamma, beta, -1], output, options)
    data = writer.finish([image], [output], {})
    (row,) = TARGET.describe(data)
    assert (row.name, row.kind) == ("model/quant_conv/Conv2D", "binary conv 3x3")
    assert (row.input_shape, row.output_shape, row.binary_weights) == ((33, 4, 4), (3, 2, 2), 3 * 9 * 33)
    # Weights and pixels of +1: the sum counts the taps, at the far edges only those inside if padding is zero.
    outputs = Lce.open(data).run(np.ones((1, 33, 4, 4), np.float32))[0, 0]
    np.testing.assert_array_equal(
        outputs, 33 * (np.array([[9, 6], [6, 4]]) if pad_values == 0 else 9 * np.ones((2, 2)))
    )
    with pytest.raises(ExportError, match="padding is not PyTorch's"):
        Lce.integers(data, row.name, np.ones((1, 33, 4, 4), np.int8))
    assert TARGET.read_metadata(data) == {"input_shape": [33, 4, 4]}


@pytest.mark.parametrize("runtime", [pytest.param(Lce, marks=needs_lce), LiteRt])
def test_samples_of_another_size_are_refused(runtime: type[Runtime], build: Build) -> None:
    session = runtime.open(TARGET.write(build((1, 3, 4, 5), (g.Clip, {"low": 0.0, "high": np.inf}))))
    with pytest.raises(ExportError, match=r"\(4, 5, 3\)"):
        session.run(np.zeros((1, 3, 5, 4), np.float32))


@needs_lce
def test_an_unknown_layer_is_named(build: Build, rng: np.random.Generator) -> None:
    data = TARGET.write(small_network(build, rng))
    with pytest.raises(ExportError, match="'n99'; it holds n2, n4, n5"):
        Lce.integers(data, "n99", np.ones((1, 32, 12, 12), np.int8))


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([(g.Affine, {"multiplier": np.array([1e39, 1.0, 1.0]), "bias": np.zeros(3)})], "n0: multiplier"),
        ([(g.Activation, {"kind": "softmax"})], "n0: softmax"),
        ([(g.Mean, {"axes": (1, 2), "keepdims": False}), (g.Add, {"inputs": ("image", "t0")})], "n1: operands"),
        ([SIGN, (g.BinaryConv2d, {"weight": np.zeros((2, 3, 1, 1), np.int8)})], "n1: a binary weight"),
    ],
)
def test_what_cannot_be_written_is_named(specs: list[Spec], message: str) -> None:
    graph = g.Graph(("image",), ("image",), [], {"image": g.TensorSpec((2, 3, 5, 5))})
    for index, (kind, fields) in enumerate(specs):
        output = f"t{index}"
        defaults: dict[str, Any] = {"name": f"n{index}", "inputs": (graph.output,), "output": output}
        if kind is g.BinaryConv2d:
            defaults |= {"multiplier": np.ones(2), "bias": np.zeros(2)}
        graph.nodes.append(kind(**{**defaults, **fields}))
        shape = (2, 5) if kind is g.Mean else (2, 3, 5, 5)
        graph.tensors[output] = g.TensorSpec(shape, "bits" if kind is g.Binarize else "float32")
        graph.outputs = (output,)
    with pytest.raises(ExportError, match=message):
        TARGET.write(graph)


def test_metadata_must_be_json(build: Build) -> None:
    graph = build((1, 3), (g.Clip, {"low": 0.0, "high": 6.0}), weights=np.ones(3))
    with pytest.raises(ExportError, match="plain JSON"):
        TARGET.write(graph)


def test_why_lce_is_unavailable(monkeypatch: pytest.MonkeyPatch, build: Build, rng: np.random.Generator) -> None:
    data = TARGET.write(small_network(build, rng))
    with monkeypatch.context() as patch:
        patch.setattr(lce_module, "find_spec", lambda name: None)
        assert "pip install 'bnnedge[lce]'" in (Lce.unavailable() or "")
        with pytest.raises(MissingDependencyError, match="not installed"):
            Lce.open(data)
    if Lce.unavailable() is None:
        monkeypatch.setattr(np, "__version__", "2.1.0")
        assert "numpy 1.26 only, found 2.1.0" in (Lce.unavailable() or "")
