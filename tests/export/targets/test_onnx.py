"""The ONNX target in ONNX Runtime against a float64 evaluation of the same graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from bnnedge.errors import DataError, ExportError
from bnnedge.export import graph as g
from bnnedge.export.runtimes.ort import OnnxRuntime
from bnnedge.export.targets.onnx import functions as onnx_functions
from bnnedge.export.targets.onnx.reader import load_model
from bnnedge.export.targets.onnx.target import OnnxTarget
from tests.export.digests import without_digest

ROUND_OFF = 2.0**-24
"""Unit round-off u of float32."""
TARGET = OnnxTarget()
Array = NDArray[Any]
Shape = tuple[int, ...]
Spec = tuple[type[g.Node], dict[str, Any]]
Build = Callable[..., g.Graph]
Evaluate = Callable[[g.Graph, NDArray[np.float32]], dict[str, NDArray[np.float64]]]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240229)


def binary_conv(rng: np.random.Generator, weight_shape: Shape, **fields: Any) -> Spec:
    weight = rng.choice([-1, 1], weight_shape).astype(np.int8)
    outputs = weight_shape[0]
    return g.BinaryConv2d, {"weight": weight, "multiplier": np.ones(outputs), "bias": np.zeros(outputs), **fields}


def run(graph: g.Graph, x: Array) -> Array:
    return OnnxRuntime.open(TARGET.write(graph)).run(x)


def magnitude(graph: g.Graph, x: Array, evaluate: Evaluate) -> Array:
    """The graph on absolute values throughout: the sum of the sizes of all terms of each output."""
    nodes = []
    for node in graph.nodes:
        arrays: dict[str, Any] = {k: np.abs(v) for k, v in vars(node).items() if isinstance(v, np.ndarray)}
        made = g.Add(name=node.name, inputs=node.inputs, output=node.output) if isinstance(node, g.Sub) else node
        nodes.append(replace(made, **arrays))
    return evaluate(replace(graph, nodes=nodes), np.abs(x))[graph.output]


def float_cases() -> dict[str, tuple[int, Shape, list[Spec]]]:
    """For every float node: the number of float32 roundings on the way to one output, input shape and chain."""
    n = np.random.default_rng(1).standard_normal
    conv = {"weight": n((6, 3, 3, 2)), "bias": n(6), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    depthwise = {"weight": n((6, 1, 3, 3)), "bias": n(6), "groups": 6}
    affine: Spec = (g.Affine, {"multiplier": np.array([-1.5, 0.0, 2.0]), "bias": n(3)})
    prelu: Spec = (g.PRelu, {"slope": np.array([0.25, -0.5, 0.0])})
    pointwise: Spec = (g.Conv2d, {"weight": n((3, 3, 1, 1)), "bias": n(3)})
    mean: Spec = (g.Mean, {"axes": (2, 3), "keepdims": True})
    both = {"inputs": ("image", "t0")}
    square: Spec = (g.Mul, {"inputs": ("image", "image")})
    shift: Spec = (g.Affine, {"multiplier": np.ones(3), "bias": np.full(3, 0.5)})
    image = (2, 3, 8, 7)
    return {
        "conv": (19, image, [(g.Conv2d, conv)]),
        "depthwise conv": (10, (2, 6, 5, 4), [(g.Conv2d, depthwise)]),
        "linear": (34, (2, 33), [(g.Linear, {"weight": n((5, 33)), "bias": n(5)})]),
        "affine": (2, image, [affine]),
        "affine of rows": (2, (2, 3), [affine]),
        "affine, shift only": (1, image, [shift]),
        "affine, scale only": (1, image, [(g.Affine, {"multiplier": n(3), "bias": np.zeros(3)})]),
        "affine, identity": (0, image, [(g.Affine, {"multiplier": np.ones(3), "bias": np.zeros(3)})]),
        "relu": (0, image, [(g.Clip, {"low": 0.0, "high": np.inf})]),
        "clip above": (0, image, [(g.Clip, {"low": -np.inf, "high": 0.5})]),
        "clip below": (0, image, [(g.Clip, {"low": -0.25, "high": np.inf})]),
        "no clip": (0, image, [(g.Clip, {"low": -np.inf, "high": np.inf})]),
        "hard tanh": (0, image, [(g.Clip, {"low": -1.0, "high": 1.0})]),
        "prelu": (1, image, [prelu]),
        "prelu of rows": (1, (2, 3), [prelu]),
        "add": (5, image, [pointwise, (g.Add, both)]),
        "sub": (5, image, [pointwise, (g.Sub, both)]),
        "sub, broadcast": (58, image, [mean, (g.Sub, both)]),
        "mul": (1, image, [square]),
        "div by sqrt": (5, image, [square, shift, (g.Sqrt, {}), (g.Div, {"inputs": ("image", "t2")})]),
        "mean": (57, image, [(g.Mean, {"axes": (2, 3), "keepdims": False})]),
        "mean, one axis": (8, image, [(g.Mean, {"axes": (3,), "keepdims": True})]),
        "max pool": (0, image, [(g.MaxPool2d, {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 1)})]),
        "avg pool": (7, image, [(g.AvgPool2d, {"kernel": (3, 2), "stride": (2, 1)})]),
        "reshape": (0, image, [(g.Reshape, {"shape": (168,)})]),
        "reshape to image": (0, (2, 12), [(g.Reshape, {"shape": (3, 2, 2)})]),
        "subsample": (0, image, [(g.Subsample, {"step": (2, 3)})]),
        "pad channels": (0, image, [(g.PadChannels, {"before": 1, "after": 4})]),
        "concat": (4, image, [pointwise, (g.Concat, {"inputs": ("t0", "image", "t0")})]),
    }


FLOAT_CASES = float_cases()


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("case", FLOAT_CASES)
def test_float_nodes(case: str, batch: int, rng: np.random.Generator, build: Build, evaluate: Evaluate) -> None:
    roundings, shape, specs = FLOAT_CASES[case]
    graph = build(shape, *specs)
    x = rng.standard_normal((batch, *graph.tensors["image"].shape[1:])).astype(np.float32)
    actual = run(graph, x)
    assert actual.shape == (batch, *graph.tensors[graph.output].shape[1:])
    # Each of n roundings changes the result by at most u times the sum of the sizes of its terms, in any order.
    error = np.abs(actual - evaluate(graph, x)[graph.output])
    assert (error <= roundings * (1 + 2.0**-10) * ROUND_OFF * magnitude(graph, x, evaluate)).all()


@pytest.mark.parametrize("kind", ["sigmoid", "tanh", "softmax"])
def test_activations(kind: str, rng: np.random.Generator, build: Build, evaluate: Evaluate) -> None:
    graph = build((2, 7), (g.Activation, {"kind": kind}))
    x = 3 * rng.standard_normal((4, 7), np.float32)
    # Values up to 1 from approximations that are good to a few float32 steps: 8 steps of 2**-24.
    np.testing.assert_allclose(run(graph, x), evaluate(graph, x)[graph.output], rtol=0, atol=8 * ROUND_OFF)


GEOMETRIES: list[dict[str, Any]] = [
    {"channels": c, "kernel": k, "padding": (k[0] // 2, k[1] // 2)}
    for c in (1, 3, 31, 32, 33, 63, 64, 65)
    for k in ((1, 1), (3, 3), (2, 3), (5, 5))
] + [
    {"channels": 33, "kernel": (3, 3), "padding": (1, 1), "stride": (2, 2)},
    {"channels": 33, "kernel": (3, 3), "padding": (1, 1), "stride": (2, 2), "size": (7, 8)},
    {"channels": 3, "kernel": (1, 1), "stride": (2, 2)},
    {"channels": 65, "kernel": (2, 3), "padding": (0, 2), "stride": (1, 3)},
    {"channels": 32, "kernel": (3, 3), "padding": (2, 2), "dilation": (2, 2)},
    {"channels": 31, "kernel": (3, 2), "padding": (1, 3), "dilation": (1, 3), "stride": (2, 1)},
    {"channels": 64, "kernel": (3, 3), "padding": (1, 1), "groups": 2},
    {"channels": 66, "kernel": (3, 3), "padding": (1, 1), "groups": 2, "stride": (2, 2)},
    {"channels": 6, "kernel": (3, 3), "padding": (1, 1), "groups": 6},
    {"channels": 33, "kernel": (5, 5), "padding": (2, 2), "size": (1, 1)},
    {"channels": 33, "kernel": (5, 5), "padding": (2, 2), "size": (2, 3), "stride": (2, 2)},
    {"channels": 33, "kernel": (3, 3), "padding": (3, 3), "size": (1, 2)},
    {"channels": 40, "kernel": (4, 4), "size": (4, 4)},
]


@pytest.mark.parametrize("case", GEOMETRIES, ids=lambda c: "-".join(f"{v}" for v in c.values()))
def test_binary_convolution_is_exact(
    case: dict[str, Any], rng: np.random.Generator, build: Build, evaluate: Evaluate
) -> None:
    fields = dict(case)
    channels, kernel, size = fields.pop("channels"), fields.pop("kernel"), fields.pop("size", (8, 6))
    weight_shape = (6, channels // fields.get("groups", 1), *kernel)
    graph = build((1, channels, *size), (g.Binarize, {}), binary_conv(rng, weight_shape, **fields))
    x = rng.standard_normal((2, channels, *size)).astype(np.float32)
    data = TARGET.write(graph)
    expected = evaluate(graph, x)

    np.testing.assert_array_equal(OnnxRuntime.open(data).run(x), expected["t1"])
    integers = OnnxRuntime.integers(data, "n1", expected["t0"].astype(np.int8))
    assert integers.dtype == np.int32
    np.testing.assert_array_equal(integers, expected["t1"])


@pytest.mark.parametrize("layout", [(6, 33, 3, 3, 1), (6, 3, 3, 3, 2)], ids=["plain", "groups"])
def test_threshold(
    layout: tuple[int, int, int, int, int], rng: np.random.Generator, build: Build, evaluate: Evaluate
) -> None:
    *weight_shape, groups = layout
    limits = np.iinfo(np.int32)
    threshold = np.array([0, 1, -5, limits.min, limits.max, -1], np.int32)
    conv = binary_conv(rng, tuple(weight_shape), threshold=threshold, padding=(1, 1), groups=groups)
    channels = weight_shape[1] * groups
    graph = build((1, channels, 6, 6), (g.Binarize, {}), conv)
    x = rng.standard_normal((3, channels, 6, 6)).astype(np.float32)
    data = TARGET.write(graph)
    expected = evaluate(graph, x)
    signs = expected["t0"].astype(np.int8)
    sums = OnnxRuntime.integers(data, "n1", signs)

    plain = build((1, channels, 6, 6), (g.Binarize, {}), (conv[0], {**conv[1], "threshold": None}))
    np.testing.assert_array_equal(sums, evaluate(plain, x)["t1"])
    assert (sums == threshold[:, None, None])[:, [0, 1, 2, 5]].any(), "the case holds no tie"
    np.testing.assert_array_equal(OnnxRuntime.open(data).run(x), expected["t1"])


def test_scaled_sums_are_rounded_only_where_the_graph_says_so(rng: np.random.Generator, build: Build) -> None:
    """A sum of 0 with bias 0 must come out as 0, whatever the multiplier: the next layer takes its sign."""
    multiplier = np.array([0.1, -0.3, 0.0, 1e-3, -7.7, 3.3])
    bias = np.array([0.0, 0.0, -2.0, 0.0, 1.1, 0.0])
    conv = binary_conv(rng, (6, 64, 3, 3), multiplier=multiplier, bias=bias, padding=(1, 1))
    graph = build((1, 64, 8, 8), (g.Binarize, {}), conv)
    x = rng.standard_normal((4, 64, 8, 8)).astype(np.float32)
    data = TARGET.write(graph)
    sums = OnnxRuntime.integers(data, "n1", np.where(x < 0, -1, 1).astype(np.int8)).astype(np.float32)
    assert (sums[:, :2] == 0).any()
    expected = sums * multiplier.astype(np.float32)[:, None, None] + bias.astype(np.float32)[:, None, None]
    np.testing.assert_array_equal(OnnxRuntime.open(data).run(x), expected)


def test_sign_of_special_values(build: Build) -> None:
    values = np.array([0.0, -0.0, np.nan, -np.nan, 1e-45, -1e-45, np.inf, -np.inf, 2, -2], np.float32)
    signs = np.array([1, 1, 1, 1, 1, -1, 1, -1, 1, -1])
    weight = np.ones((1, 1, 1, 1), np.int8)
    conv = (g.BinaryConv2d, {"weight": weight, "multiplier": np.ones(1), "bias": np.zeros(1)})
    x = values.reshape(1, 1, 1, 10)
    convolved = TARGET.write(build(x.shape, (g.Binarize, {}), conv))
    np.testing.assert_array_equal(OnnxRuntime.open(convolved).run(x).ravel(), signs)
    np.testing.assert_array_equal(OnnxRuntime.tap(convolved, x)[1]["n1"].ravel(), signs)
    np.testing.assert_array_equal(run(build(x.shape, (g.Binarize, {})), x).ravel(), signs)


def bit_cases() -> dict[str, list[Spec]]:
    """Chains on images 33 x 6 x 6 whose ``bits`` tensors go everywhere that they may go."""
    rng = np.random.default_rng(2)
    binarize: Spec = (g.Binarize, {})
    pool: Spec = (g.MaxPool2d, {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)})
    threshold = binary_conv(rng, (5, 33, 3, 3), threshold=np.arange(-2, 3).astype(np.int32))
    wide = binary_conv(rng, (33, 33, 3, 3), padding=(1, 1))
    last = binary_conv(rng, (4, 5, 3, 3), multiplier=np.array([1.0, -2.0, 0.0, 0.5]), padding=(1, 1))
    flatten: Spec = (g.Reshape, {"shape": (33 * 36, 1, 1)})
    return {
        "binarize": [binarize],
        "binarize, pool": [binarize, pool],
        "binarize, pool, reshape": [binarize, pool, (g.Reshape, {"shape": (297,)})],
        "threshold": [binarize, threshold],
        "threshold, pool": [binarize, threshold, pool],
        "threshold, pool, conv": [binarize, threshold, pool, last],
        "pool, threshold, conv": [binarize, pool, threshold, last],
        "reshape, conv": [binarize, flatten, binary_conv(rng, (4, 33 * 36, 1, 1))],
        "bits read as numbers": [binarize, wide, (g.Add, {"inputs": ("t1", "t0")})],
        "pooled bits read as numbers": [binarize, pool, wide, (g.Add, {"inputs": ("t2", "t1")})],
        "float after bits": [binarize, wide, binarize, binary_conv(rng, (2, 33, 1, 1))],
    }


BIT_CASES = bit_cases()


@pytest.mark.parametrize("case", BIT_CASES)
@pytest.mark.parametrize("batch", [1, 5])
def test_bits(case: str, batch: int, rng: np.random.Generator, build: Build, evaluate: Evaluate) -> None:
    graph = build((1, 33, 6, 6), *BIT_CASES[case])
    x = rng.standard_normal((batch, 33, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(run(graph, x), evaluate(graph, x)[graph.output])


@pytest.mark.parametrize(("axes", "terms"), [((2, 3), 16), ((1, 2, 3), 16 * 34)])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("batch", [1, 5])
def test_mean_behind_a_block(
    axes: tuple[int, ...],
    terms: int,
    keepdims: bool,
    batch: int,
    rng: np.random.Generator,
    build: Build,
    evaluate: Evaluate,
) -> None:
    conv = binary_conv(rng, (34, 33, 3, 2), multiplier=rng.standard_normal(34), bias=rng.standard_normal(34))
    graph = build((1, 33, 6, 5), (g.Binarize, {}), conv, (g.Mean, {"axes": axes, "keepdims": keepdims}))
    data = TARGET.write(graph)
    assert not [n for n in onnx.load_model_from_string(data).graph.node if n.name == "t1/to_nchw"]
    x = rng.standard_normal((batch, 33, 6, 5)).astype(np.float32)
    # Rounded: multiplier, bias, product and sum of the convolution; 1 / terms, a product and a sum of each term.
    bound = (4 + 2 + terms) * ROUND_OFF * magnitude(graph, x, evaluate)
    assert (np.abs(run(graph, x) - evaluate(graph, x)[graph.output]) <= bound).all()


def test_bits_are_packed_once_and_stay_packed(build: Build) -> None:
    model = onnx.load_model_from_string(TARGET.write(build((1, 33, 6, 6), *BIT_CASES["pool, threshold, conv"])))
    assert [(n.name, n.op_type) for n in model.graph.node] == [
        ("image/to_nhwc", "Transpose"),
        ("t0/pack", "PackSigns"),
        ("n1", "PackedMaxPool2d"),
        ("n2", "PackedConv2dThreshold"),
        ("n3", "PackedConv2d"),
        ("t3/to_nchw", "Transpose"),
    ]


def small_network(build: Build, **metadata: Any) -> g.Graph:
    """Every kind of row that ``describe`` knows."""
    rng = np.random.default_rng(3)
    n = rng.standard_normal
    return build(
        (1, 3, 8, 8),
        (g.Conv2d, {"weight": n((33, 3, 3, 3)), "bias": n(33), "padding": (1, 1), "reason": "first layer"}),
        (g.Binarize, {}),
        binary_conv(rng, (34, 33, 3, 3), threshold=np.zeros(34, np.int32), padding=(1, 1), stride=(2, 2)),
        binary_conv(rng, (10, 17, 1, 1), groups=2, multiplier=n(10), bias=n(10)),
        (g.PRelu, {"slope": n(10)}),
        (g.Affine, {"multiplier": n(10), "bias": n(10)}),
        (g.Affine, {"multiplier": np.ones(10), "bias": n(10)}),
        (g.Clip, {"low": -1.0, "high": 1.0}),
        (g.Mean, {"axes": (2, 3), "keepdims": False}),
        (g.Linear, {"weight": n((4, 10)), "bias": n(4), "reason": "last layer"}),
        **metadata,
    )


def test_describe_reads_the_rows_from_the_file(build: Build) -> None:
    rows = TARGET.describe(TARGET.write(small_network(build)))
    columns = [
        (r.name, r.kind, r.input_shape, r.output_shape, r.binary_weights, r.float_params, r.weight_bytes) for r in rows
    ]
    assert columns == [
        ("n0", "conv 3x3", (3, 8, 8), (33, 8, 8), 0, 924, 3696),
        ("n2", "binary conv 3x3", (33, 8, 8), (34, 4, 4), 34 * 297, 0, 34 * 9 * 8 + 4 * 34),
        ("n3", "binary conv 1x1", (34, 4, 4), (10, 4, 4), 170, 20, 10 * 4 + 80),
        ("n4", "prelu", (10, 4, 4), (10, 4, 4), 0, 10, 40),
        ("n5", "affine", (10, 4, 4), (10, 4, 4), 0, 20, 80),
        ("n6", "affine", (10, 4, 4), (10, 4, 4), 0, 10, 40),
        ("n9", "linear", (10,), (4,), 0, 44, 176),
    ]
    assert [r.float_macs for r in rows] == [33 * 27 * 64, 0, 0, 0, 0, 0, 40]
    assert [r.binary_macs for r in rows] == [0, 34 * 297 * 16, 170 * 16, 0, 0, 0, 0]
    assert [r.reason for r in rows] == ["first layer", "", "", "", "", "", "last layer"]


def test_metadata(build: Build) -> None:
    metadata = {"producer": "bnnedge", "bnnedge_version": "1.2.3", "classes": ["cat", "Übung"], "mean": [0.5]}
    data = TARGET.write(small_network(build, **metadata))
    read = TARGET.read_metadata(data)
    assert {key: value for key, value in read.items() if key != "digest"} == metadata
    model = onnx.load_model_from_string(data)
    assert (model.producer_name, model.producer_version) == ("bnnedge", "1.2.3")
    assert json.loads({p.key: p.value for p in model.metadata_props}["bnnedge"]) == read


def test_file_is_valid_reproducible_and_has_shapes(build: Build) -> None:
    graph = small_network(build)
    data = TARGET.write(graph)
    assert data == TARGET.write(graph)
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    for info in [*inferred.graph.value_info, *inferred.graph.output]:
        batch, *rest = info.type.tensor_type.shape.dim
        assert batch.dim_param == "N"
        if info.name in graph.tensors:
            assert tuple(d.dim_value for d in rest) == graph.tensors[info.name].shape[1:]
    assert {i.name for i in inferred.graph.value_info} >= {n.output for n in graph.nodes[2:-1]}


def test_only_used_functions_are_in_the_file(build: Build) -> None:
    def functions(case: str) -> list[str]:
        data = TARGET.write(build((1, 33, 6, 6), *BIT_CASES[case]))
        return [f.name for f in onnx.load_model_from_string(data).functions]

    assert functions("binarize") == []
    assert functions("threshold") == ["PackSigns", "PackedConv2dThreshold"]
    assert functions("reshape, conv") == ["PackSigns", "PackedConv2d"]
    assert functions("threshold, pool, conv") == [
        "PackSigns",
        "PackedConv2d",
        "PackedConv2dThreshold",
        "PackedMaxPool2d",
    ]


def test_equal_constants_are_stored_once(rng: np.random.Generator, build: Build, evaluate: Evaluate) -> None:
    shapes = [(12, 2), (24, 1), (12, 2), (4, 6)]
    graph = build((1, 24), *((g.Reshape, {"shape": shape}) for shape in shapes))
    model = onnx.load_model_from_string(TARGET.write(graph))
    assert sorted(onnx.numpy_helper.to_array(t).tolist() for t in model.graph.initializer) == [
        [0, 4, 6],
        [0, 12, 2],
        [0, 24, 1],
    ]
    x = rng.standard_normal((3, 24)).astype(np.float32)
    np.testing.assert_array_equal(run(graph, x), evaluate(graph, x)[graph.output])


def test_function_bodies_survive_a_file(tmp_path: Path, rng: np.random.Generator, build: Build) -> None:
    graph = small_network(build)
    data = TARGET.write(graph)
    onnx.save(onnx.load_model_from_string(data), str(tmp_path / "network.onnx"))
    copy = (tmp_path / "network.onnx").read_bytes()
    assert onnx.load_model_from_string(copy).functions[0] == onnx_functions.function("BinaryConv2d")
    x = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(OnnxRuntime.open(copy).run(x), OnnxRuntime.open(data).run(x))


def test_packed_weight_is_the_documented_one() -> None:
    weight = np.ones((1, 33, 1, 1), np.int8)
    weight[0, [1, 2, 32]] = -1
    assert onnx_functions.pack_weight(weight).tolist() == [[[[6, 0, 0, 0, 1, 0, 0, 0]]]]


def test_size_of_a_resnet_18(rng: np.random.Generator, build: Build) -> None:
    """One bit a weight, four bytes a float parameter, and at most 5 % for everything else."""
    nodes: list[Spec] = [
        (g.Conv2d, {"weight": rng.standard_normal((64, 3, 3, 3)), "bias": np.zeros(64), "padding": (1, 1)})
    ]
    widths = [64] * 5 + [128] * 4 + [256] * 4 + [512] * 4
    for index, (before, after) in enumerate(pairwise(widths)):
        scale = {"multiplier": rng.standard_normal(after), "bias": rng.standard_normal(after)}
        name = f"stages.{index // 4}.blocks.{index % 4}.conv"
        stride = (1, 1) if before == after else (2, 2)
        nodes.append((g.Binarize, {}))
        nodes.append(binary_conv(rng, (after, before, 3, 3), padding=(1, 1), stride=stride, name=name, **scale))
    nodes.append((g.Mean, {"axes": (2, 3), "keepdims": False}))
    nodes.append((g.Linear, {"weight": rng.standard_normal((10, 512)), "bias": np.zeros(10)}))
    data = TARGET.write(build((1, 3, 8, 8), *nodes))
    rows = TARGET.describe(data)
    weights, floats = sum(r.binary_weights for r in rows), sum(r.float_params for r in rows)
    assert weights > 10_000_000
    assert len(data) <= 1.05 * (weights / 8 + 4 * floats)


def test_tap_shows_the_signs_that_enter_each_layer(rng: np.random.Generator, build: Build, evaluate: Evaluate) -> None:
    graph = build((1, 33, 6, 6), *BIT_CASES["threshold, pool, conv"])
    x = rng.standard_normal((3, 33, 6, 6)).astype(np.float32)
    data = TARGET.write(graph)
    outputs, signs = OnnxRuntime.tap(data, x)
    expected = evaluate(graph, x)
    np.testing.assert_array_equal(outputs[graph.output], expected[graph.output])
    assert list(signs) == ["n1", "n3"]
    np.testing.assert_array_equal(signs["n1"], expected["t0"])
    np.testing.assert_array_equal(signs["n3"], expected["t2"])
    assert signs["n1"].dtype == np.int8


def test_broken_files(build: Build) -> None:
    data = TARGET.write(small_network(build))
    for end in [*range(0, len(data), 97), len(data) - 1]:
        for read in (TARGET.describe, TARGET.read_metadata, OnnxRuntime.open):
            with pytest.raises(ExportError) as caught:
                read(data[:end])
            assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match="not a complete ONNX file"):
        TARGET.describe(b"this is a text file, not a network")


def test_names_that_are_not_text(build: Build) -> None:
    data = TARGET.write(small_network(build))
    for name in (b"n0", b"t0", b"bnnedge.bit_layout_version"):
        assert name in data
        for read in (TARGET.describe, TARGET.read_metadata, load_model):
            with pytest.raises(ExportError, match="not a complete ONNX file"):
                read(data.replace(name, name[:-1] + b"\xff"))


def test_an_unknown_data_type_is_named(build: Build) -> None:
    model = onnx.load_model_from_string(TARGET.write(small_network(build)))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "n0.bias")
    weight.data_type = 99
    with pytest.raises(ExportError, match=r"n0\.bias: the ONNX file has an unknown data type, 99"):
        TARGET.describe(without_digest(model.SerializeToString()))


def test_a_file_that_loads_and_cannot_run() -> None:
    shape = onnx.numpy_helper.from_array(np.array([-1, 3]), "shape")
    image, output = (onnx.helper.make_tensor_value_info(n, 1, ["N", s]) for n, s in (("image", 4), ("output", 3)))
    node = onnx.helper.make_node("Reshape", ["image", "shape"], ["output"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "graph", [image], [output], [shape]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    session = OnnxRuntime.open(model.SerializeToString())
    assert session.run(np.zeros((3, 4), np.float32)).shape == (4, 3)
    with pytest.raises(ExportError, match="ONNX Runtime cannot run a batch of 2: "):
        session.run(np.zeros((2, 4), np.float32))


def test_foreign_and_outdated_files(build: Build) -> None:
    model = onnx.load_model_from_string(TARGET.write(small_network(build)))
    model.metadata_props[1].value = "999"
    with pytest.raises(ExportError, match="bit layout 999, expected 1"):
        TARGET.describe(model.SerializeToString())
    del model.metadata_props[:]
    with pytest.raises(ExportError, match="not written by bnnedge"):
        TARGET.read_metadata(model.SerializeToString())


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ((g.Affine, {"multiplier": np.array([1.0, 1e39]), "bias": np.zeros(2)}), "n1: multiplier .* not finite"),
        ((g.Affine, {"multiplier": np.ones(2), "bias": np.array([0.0, np.nan])}), "n1: bias .* not finite"),
    ],
)
def test_unwritable_nodes_are_named(node: Spec, message: str, build: Build) -> None:
    graph = build((1, 2, 4, 4), (g.Clip, {"low": 0.0, "high": 1.0}))
    kind, fields = node
    graph.nodes.append(kind(name="n1", inputs=("t0",), output="t1", **fields))
    graph.tensors["t1"] = graph.tensors["t0"]
    with pytest.raises(ExportError, match=message):
        TARGET.write(graph)


def test_a_weight_that_is_not_binary_is_refused(rng: np.random.Generator, build: Build) -> None:
    graph = build((1, 3, 4, 4), (g.Binarize, {}), binary_conv(rng, (2, 3, 1, 1)))
    next(graph.binary_nodes()).weight[0, 0] = 0
    with pytest.raises(ExportError, match=r"n1: a binary weight must be -1 or \+1"):
        TARGET.write(graph)


def test_a_wrong_shape_in_the_graph_is_refused(rng: np.random.Generator, build: Build) -> None:
    graph = build((1, 3, 4, 4), (g.Conv2d, {"weight": rng.standard_normal((2, 3, 1, 1)), "bias": np.zeros(2)}))
    graph.tensors["t0"] = g.TensorSpec((1, 2, 9, 9))
    with pytest.raises(ExportError, match="not make a valid ONNX file"):
        TARGET.write(graph)


def test_metadata_must_be_json(build: Build) -> None:
    with pytest.raises(ExportError, match="plain JSON"):
        TARGET.write(build((1, 2), (g.Clip, {"low": 0.0, "high": 1.0}), net=object()))


def test_wrong_use_of_the_runtime(build: Build) -> None:
    data = TARGET.write(small_network(build))
    with pytest.raises(DataError, match="takes images N x 3 x 8 x 8, found 2 x 3 x 8 x 9"):
        OnnxRuntime.open(data).run(np.zeros((2, 3, 8, 9), np.float32))
    with pytest.raises(ExportError, match="no binary convolution 'n7'; it has: n2, n3"):
        OnnxRuntime.integers(data, "n7", np.ones((1, 33, 8, 8), np.int8))


def test_runtime_is_available_and_uses_the_threads_asked_for() -> None:
    assert OnnxRuntime.unavailable() is None
    assert tuple(map(int, OnnxRuntime.version().split(".")[:2])) >= (1, 17)
    assert OnnxRuntime.session_options(threads=3).intra_op_num_threads == 3
