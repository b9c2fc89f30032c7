"""The int8 stem: what it computes, what the files compute, what verification notices, what export says of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

import bnnedge
from bnnedge.errors import ExportError, VerificationError
from bnnedge.export import graph as g
from bnnedge.export.passes import optimize
from bnnedge.export.passes.quantize_stem import Calibration, quantize_stem
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.runtimes.runtime import VerifyingRuntime
from bnnedge.export.targets import TARGETS
from bnnedge.export.targets.tflite.reader import parse_model
from bnnedge.export.trace import trace
from bnnedge.export.verify import Verification, verify
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear
from bnnedge.layers.deploy import deploy
from bnnedge.methods import METHODS
from bnnedge.models.resnet_imagenet import BinaryImageNetResNet
from bnnedge.tasks.classification import Classification
from tests.stock_onnxruntime import wrong_int8_convolution

Images = NDArray[np.float32]
Evaluate = Callable[[g.Graph, Images], dict[str, NDArray[np.float64]]]
Build = Callable[..., g.Graph]

RUNTIMES_OF = [
    (target, runtime) for target in TARGETS for runtime in TARGETS.load(target).runtimes if runtime != "litert"
]


def usable(runtime: str) -> type[VerifyingRuntime]:
    found: type[VerifyingRuntime] = RUNTIMES.load(runtime)
    if found.unavailable():
        pytest.skip(f"{runtime}: {found.unavailable()}")
    if runtime == "onnxruntime" and (wrong := wrong_int8_convolution()):
        pytest.skip(wrong)
    return found


def normal(*shape: int, seed: int = 0) -> Images:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv(
    outputs: int, channels: int, kernel: tuple[int, int], seed: int = 3, **window: Any
) -> tuple[Any, dict[str, Any]]:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((outputs, channels, *kernel)) / np.sqrt(channels * kernel[0] * kernel[1])
    return g.Conv2d, {"weight": weight, "bias": random.standard_normal(outputs) / 4, **window}


HARD_TANH = (g.Clip, {"low": -1.0, "high": 1.0})
POOL = (g.MaxPool2d, {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)})


def kinds(graph: g.Graph) -> list[str]:
    return [type(node).__name__ for node in graph.nodes]


@pytest.mark.parametrize("size", [(16, 14), (15, 14), (13, 17)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [
    ((7, 7), (2, 2), (3, 3)), ((3, 4), (2, 2), (1, 0)), ((2, 5), (2, 2), (0, 2)), ((1, 3), (2, 2), (0, 1)),
    ((3, 3), (1, 1), (1, 1)), ((3, 2), (2, 1), (0, 1)),
])  # fmt: skip
def test_values_are_near_the_float_stem(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
    build: Build, evaluate: Evaluate,
) -> None:  # fmt: skip
    images = normal(4, 3, *size)
    graph = build((1, 3, *size), conv(33, 3, kernel, stride=stride, padding=padding), HARD_TANH, POOL)
    quantized = quantize_stem(graph, Calibration(images))
    folds = stride == (2, 2) and size == (16, 14) and min(kernel) > 1
    assert (g.SpaceToDepth in map(type, quantized.nodes)) == folds
    node = next(n for n in quantized.nodes if isinstance(n, g.QuantizedConv2d))
    source, target = (quantized.tensors[t].quantization for t in (node.inputs[0], node.output))
    assert source is not None and target is not None
    # Half a step for each rounded input, weight and bias, as much again for the bias' correction, half a step at last.
    float_conv = node.stands_for[0]
    magnitudes = F.conv2d(
        torch.from_numpy(np.abs(images)).double(), torch.ones(1, 3, *kernel).double(), None, stride, padding
    )
    inputs = source.scale / 2 * np.abs(node.weight.astype(float)).sum((1, 2, 3)) * node.weight_scale
    bound = 2 * (inputs + float(magnitudes.max()) * node.weight_scale / 2) + source.scale * node.weight_scale
    difference = np.abs(evaluate(quantized, images)[quantized.output] - evaluate(graph, images)[graph.output])
    assert (difference <= bound[:, None, None] + target.scale / 2 + 1e-6).all()
    assert 0 < difference.mean() < 3 * target.scale
    assert float_conv.padding == padding and np.abs(node.weight).max(axis=(1, 2, 3)).min() == 127


def test_a_folded_stem_gives_the_codes_of_the_plain_one(build: Build, evaluate: Evaluate) -> None:
    """Against the same filter on the image with a fourth, empty channel too many to fold."""
    images = normal(2, 4, 12, 18)
    images[:, 3] = 0
    many = np.concatenate([images, np.zeros_like(images[:, :1])], 1)
    for kernel, padding in itertools.product(((7, 7), (2, 3), (4, 5)), ((0, 0), (1, 1), (3, 2))):
        if padding[0] >= kernel[0] or padding[1] >= kernel[1]:
            continue
        kind, fields = conv(9, 4, kernel, stride=(2, 2), padding=padding)
        wide = {**fields, "weight": np.pad(fields["weight"], ((0, 0), (0, 1), (0, 0), (0, 0)))}
        folded = quantize_stem(build((1, 4, 12, 18), (kind, fields), HARD_TANH), Calibration(images))
        plain = quantize_stem(build((1, 5, 12, 18), (kind, wide), HARD_TANH), Calibration(many))
        assert kinds(folded)[0] == "SpaceToDepth" and kinds(plain)[0] == "Quantize"
        np.testing.assert_array_equal(
            evaluate(folded, images)[folded.output], evaluate(plain, many)[plain.output], str((kernel, padding))
        )


def test_hard_tanh_ends_are_codes_and_rounding_turns_no_sign(build: Build, evaluate: Evaluate) -> None:
    """Inputs and weights that are codes themselves: what is left is the output's rounding."""
    random = np.random.default_rng(1)
    images = (random.integers(-128, 128, (6, 2, 9, 9)) / 8).astype(np.float32)
    weight = random.integers(-127, 128, (5, 2, 3, 3)) / 2**12
    weight[:, 0, 0, 0] = 127 / 2**12
    graph = build((1, 2, 9, 9), (g.Conv2d, {"weight": weight, "bias": np.zeros(5)}), HARD_TANH)
    quantized = quantize_stem(graph, Calibration(images, (-16.0, 127 / 8)))
    expected, found = evaluate(graph, images)[graph.output], evaluate(quantized, images)[quantized.output]
    assert np.abs(found).min() == pytest.approx(1 / 255, rel=1e-4)
    assert found.min() == pytest.approx(-1, abs=1e-6) and found.max() == pytest.approx(1, abs=1e-6)
    away = expected != 0
    assert 0.1 < (expected < 0).mean() < 0.9
    np.testing.assert_array_equal(found[away] < 0, expected[away] < 0)
    assert np.abs(found - expected).max() <= 1 / 255 + 1e-6


def test_pixels_of_one_channel_are_exact(build: Build, evaluate: Evaluate) -> None:
    """Their normalisation moves all of them by one part of a code; the bias takes that back."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 1, 10, 10))
    mean, std = 0.3071, 0.3553
    images = ((pixels / 255 - mean) / std).astype(np.float32)
    weight = np.array([1.0, -1.0, 0.5]).reshape(3, 1, 1, 1)
    graph = build((1, 1, 10, 10), (g.Conv2d, {"weight": weight, "bias": np.array([0.0, 0.1, -0.2])}))
    calibration = Calibration(images, ((0 - mean) / std, (1 - mean) / std))
    quantized = quantize_stem(graph, calibration)
    target = quantized.tensors[f"{graph.output}/codes"].quantization
    assert target is not None
    difference = evaluate(quantized, images)[quantized.output] - evaluate(graph, images)[graph.output]
    # The bias itself is rounded to steps of input scale times weight scale.
    assert np.abs(difference).max() <= target.scale / 2 + 1 / 255 / std / 127 / 2 + 1e-5
    source = quantized.tensors["image/codes"].quantization
    assert source is not None and len(np.unique(evaluate(quantized, images)["image/codes"])) == len(np.unique(pixels))
    assert source.scale == pytest.approx(1 / 255 / std)


def test_which_clips_become_saturation(build: Build) -> None:
    images = normal(2, 1, 8, 8)
    float_part = {}
    for low, high in ((-1.0, 1.0), (0.0, 6.0), (0.0, np.inf), (-0.5, 2.0)):
        graph = build((1, 1, 8, 8), conv(4, 1, (3, 3)), (g.Clip, {"low": low, "high": high}), POOL)
        names = kinds(quantize_stem(graph, Calibration(images)))
        float_part[low, high] = names[names.index("Dequantize") + 1 :]
        assert ("MaxPool2d" in names[: names.index("Dequantize")]) == (low != -0.5)
    # From 0 the lowest code is the value 0; between other bounds it has to be added.
    assert float_part == {(-1, 1): ["Affine"], (0, 6): [], (0, np.inf): [], (-0.5, 2): ["Affine", "Clip", "MaxPool2d"]}


def test_filters_of_nothing_and_of_a_batch_norm_that_starts_at_nothing(build: Build, evaluate: Evaluate) -> None:
    images = normal(3, 2, 7, 7)
    kind, fields = conv(3, 2, (3, 3))
    fields["weight"][0] = 0
    fields["weight"][1] *= 1e-9
    fields["bias"] = np.array([0.25, -0.25, 5.0])
    graph = build((1, 2, 7, 7), (kind, fields), HARD_TANH)
    quantized = quantize_stem(graph, Calibration(images))
    found = evaluate(quantized, images)[quantized.output]
    np.testing.assert_allclose(found[:, :2].mean((0, 2, 3)), [0.25, -0.25], atol=1 / 255 + 1e-6)
    assert (found[:, 2] > 0.99).all()


def test_stems_that_are_none(build: Build) -> None:
    images = normal(2, 4, 8, 8)
    calibration = Calibration(images)
    grouped = build((1, 4, 8, 8), (g.Conv2d, {"weight": np.ones((4, 2, 3, 3)), "bias": np.zeros(4), "groups": 2}))
    with pytest.raises(ExportError, match=r"no int8 stem: n0 has 2 groups and dilation \(1, 1\)"):
        quantize_stem(grouped, calibration)
    dilated = build((1, 4, 8, 8), conv(4, 4, (3, 3), dilation=(2, 2)))
    with pytest.raises(ExportError, match=r"1 groups and dilation \(2, 2\)"):
        quantize_stem(dilated, calibration)
    binary = optimize(trace(deploy(nn.Sequential(BinaryConv2d(4, 4, 3), nn.BatchNorm2d(4))), torch.from_numpy(images)))
    with pytest.raises(ExportError, match=r"read by one float convolution, found .*Binarize"):
        quantize_stem(binary, calibration)
    twice = build((1, 4, 8, 8), conv(4, 4, (3, 3), padding=(1, 1)), (g.Add, {"inputs": ("t0", "image")}))
    with pytest.raises(ExportError, match=r"found n0 \(Conv2d\), n1 \(Add\)"):
        quantize_stem(twice, calibration)
    with pytest.raises(ExportError, match="the input should vary over the calibration images, its range is 0"):
        quantize_stem(build((1, 4, 8, 8), conv(4, 4, (3, 3))), Calibration(np.zeros_like(images)))
    kind, fields = conv(4, 4, (3, 3))
    fields["weight"] *= 1e7
    with pytest.raises(ExportError, match="the weights of n0 are too large"):
        quantize_stem(build((1, 4, 8, 8), (kind, fields), HARD_TANH), calibration)


class Functional(nn.Module):
    """A stem written with functions, on an odd image, and a shortcut that reads it too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 33, 3, 2, 1)
        self.norm = nn.BatchNorm2d(33)
        self.binary = BinaryConv2d(33, 33, 3, 1, 1)
        self.head = nn.Linear(33, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.hardtanh(self.norm(self.first(x.contiguous()))), 2)
        return self.head((self.binary(x) * 0.05 + x).mean((2, 3)))  # type: ignore[no-any-return]


def imagenet(method: str) -> nn.Module:
    model = BinaryImageNetResNet(5, 3, (1, 1), (9, 33))
    training_method = METHODS.load(method)
    training_method(training_method.Options()).attach(model)
    return model


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "folded": (lambda: imagenet("ste"), (3, 28, 28)),
    "odd": (lambda: imagenet("rbnn"), (3, 29, 29)),
    "functions": (Functional, (2, 15, 13)),
    "range from images": (lambda: nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), BinaryConv2d(32, 8, 3), nn.Flatten(), nn.Linear(288, 3)
    ), (3, 8, 8)),
    "relu": (lambda: nn.Sequential(
        nn.Conv2d(1, 31, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(31), BinaryConv2d(31, 8, 3), nn.Flatten(),
        nn.Linear(32, 3)
    ), (1, 9, 9)),
}  # fmt: skip


def trained(name: str) -> tuple[nn.Module, Images]:
    make, shape = NETS[name]
    torch.manual_seed(2)
    model, images = make(), normal(64, *shape)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        model.train()(torch.from_numpy(images))
    return model.eval(), images


def check(
    name: str, target: str, runtime: str, damage: Callable[[g.Node], g.Node] = lambda n: n, in_graph: bool = False
) -> Verification:
    """Verify the file of a graph in which ``damage`` has replaced nodes; ``in_graph``: verification sees them too."""
    judge = usable(runtime)
    model, images = trained(name)
    graph = optimize(trace(deploy(model), torch.from_numpy(images[:2])), Calibration(images))
    damaged = replace(graph, nodes=[damage(node) for node in graph.nodes])
    return verify(deploy(model), damaged if in_graph else graph, TARGETS.load(target)().write(damaged), judge, images)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("target", "runtime"), RUNTIMES_OF)
def test_good_files_pass_in_every_runtime(name: str, target: str, runtime: str) -> None:
    found = check(name, target, runtime)
    assert found.agreement == 1.0 and found.images == 64
    assert found.stem is not None and 0 <= found.stem.share < 0.02
    assert found.stem.signs == found.images * int(np.prod(trained_first_shape(name)))


def trained_first_shape(name: str) -> tuple[int, ...]:
    model, images = trained(name)
    graph = optimize(trace(deploy(model), torch.from_numpy(images[:2])))
    return graph.tensors[next(graph.binary_nodes()).inputs[0]].shape[1:]


def turn_a_weight(node: g.Node) -> g.Node:
    if not isinstance(node, g.QuantizedConv2d):
        return node
    weight = node.weight.copy()
    weight[3] = -weight[3]
    return replace(node, weight=weight)


def move_a_bias(node: g.Node) -> g.Node:
    steps = np.eye(1, 9, 4, dtype=np.int32)[0] * 200
    return replace(node, bias=node.bias + steps) if isinstance(node, g.QuantizedConv2d) else node


def move_the_lowest_value(node: g.Node) -> g.Node:
    return replace(node, bias=node.bias + 0.02) if node.name == "stem/lowest" and isinstance(node, g.Affine) else node


def stand_for_another(node: g.Node) -> g.Node:
    if not isinstance(node, g.QuantizedConv2d):
        return node
    float_conv, clip = node.stands_for
    return replace(node, stands_for=(replace(float_conv, bias=float_conv.bias + 1e-6), clip))


@pytest.mark.parametrize(("target", "runtime"), [("onnx", "onnxruntime"), ("lce", "lce")])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (turn_a_weight, r"^stem: codes of the output: \d+ of \d+ in the file are not the nearest"),
        (move_a_bias, r"^stem: codes of the output: \d+ of \d+ in the file are not the nearest"),
        (move_the_lowest_value, "^blocks.0.conv1: the file's sign of .* is wrong"),
    ],
)
def test_what_the_file_gets_wrong_is_named(
    target: str, runtime: str, damage: Callable[[g.Node], g.Node], message: str
) -> None:
    with pytest.raises(VerificationError, match=message):
        check("folded", target, runtime, damage)


def test_codes_of_the_input_are_compared() -> None:
    model, images = trained("folded")
    graph = optimize(trace(deploy(model), torch.from_numpy(images[:2])), Calibration(images))
    tensors = dict(graph.tensors)
    name = next(node.output for node in graph.nodes if isinstance(node, g.Quantize))
    spec = tensors[name]
    assert spec.quantization is not None
    tensors[name] = replace(spec, quantization=replace(spec.quantization, scale=spec.quantization.scale * 1.01))
    data = TARGETS.load("onnx")().write(replace(graph, tensors=tensors))
    with pytest.raises(VerificationError, match=r"^stem: codes of the input"):
        verify(deploy(model), graph, data, RUNTIMES.load("onnxruntime"), images)


def test_the_checkpoint_must_compute_the_stem_that_was_quantized() -> None:
    with pytest.raises(VerificationError, match="computes nothing equal to the float stem"):
        check("folded", "onnx", "onnxruntime", stand_for_another, in_graph=True)


def test_files_hold_standard_operators(tmp_path: Path) -> None:
    """The body of the one operator that holds the stem in the ONNX file."""
    model, images = trained("folded")
    graph = optimize(trace(deploy(model), torch.from_numpy(images[:2])), Calibration(images))
    onnx_file = onnx.load_from_string(TARGETS.load("onnx")().write(graph))
    assert onnx_file.graph.node[0].op_type == "SpaceToDepthQuantizedConv2dMaxPoolSign"
    body = next(f for f in onnx_file.functions if f.name == onnx_file.graph.node[0].op_type).node
    unsigned = ["Cast", "Add", "Cast"]  # weights that cannot saturate in ONNX Runtime's kernels
    stem = ["QLinearConv", "MaxPool", "Transpose", "DequantizeLinear", "Add"]
    operators = [node.op_type for node in body if node.op_type != "Constant"]
    assert operators[:10] == ["SpaceToDepth", "QuantizeLinear", *unsigned, *stem]
    assert {node.domain for node in body} == {""}
    model_file = parse_model(TARGETS.load("lce")().write(graph))
    codes = [op.code for op in model_file.operators][:8]
    # PAD: the code of 0 is the lowest, so it never wins in the max-pool.
    wanted = ["SPACE_TO_DEPTH", "QUANTIZE", "PAD", "CONV_2D", "PAD", "MAX_POOL_2D", "DEQUANTIZE", "ADD"]
    assert codes == wanted
    rows = {name: TARGETS.load(name)().describe(TARGETS.load(name)().write(graph)) for name in TARGETS}
    for row in (rows["onnx"][0], rows["lce"][0]):
        assert (row.name, row.kind, row.int8_weights, row.float_params) == ("stem", "int8 conv 4x4", 9 * 12 * 16, 18)
        assert (row.int8_macs, row.float_macs) == (9 * 12 * 16 * 14 * 14, 0)
        assert row.weight_bytes == 9 * 12 * 16 + 4 * 18
        assert row.reason == "int8 stem; a 7x7 filter on the image folded 2x2"


@pytest.mark.parametrize("target", TARGETS)
def test_export_says_and_records_what_the_stem_changed(target: str, tmp_path: Path) -> None:
    model, images = trained("odd")
    labels = np.arange(64) % 5
    path = tmp_path / f"net{TARGETS.load(target).suffix}"
    report = bnnedge.export(
        model,
        torch.from_numpy(images),
        path,
        target,
        verify_images=images,
        stem="int8",
        task=Classification(5),
        labelled=(images, labels),
    )
    with torch.no_grad():
        expected = (model(torch.from_numpy(images)).argmax(1).numpy() == labels).mean()
    assert report.stem is not None and report.stem.scores_fp32 == {"top1": expected} and report.stem.samples == 64
    recorded = TARGETS.load(target)().read_metadata(path.read_bytes())["stem"]
    assert recorded["precision"] == "int8" and recorded["scores"] == report.stem.scores
    if report.verification is not None:
        assert report.verification.stem is not None
        assert recorded["first_signs_changed"] == report.verification.stem.share == report.stem.first_signs_changed
        assert f"{report.stem.first_signs_changed:.2%} of the first signs differ" in str(report.stem)
    assert f"against top-1 {expected:.2%} in fp32 (64 samples)" in str(report.stem)
    assert any(row.int8_weights for row in report.rows)

    plain = bnnedge.export(model, torch.from_numpy(images), path, target, check=False)
    assert plain.stem is None and "stem" not in TARGETS.load(target)().read_metadata(path.read_bytes())


def test_mistakes(tmp_path: Path) -> None:
    model, images = trained("odd")
    with pytest.raises(ExportError, match="unknown stem 'int4'; known: fp32, int8"):
        bnnedge.export(model, torch.from_numpy(images), tmp_path / "net.onnx", stem="int4")
    with pytest.raises(ExportError, match="the input should vary over the calibration images"):
        bnnedge.export(model, torch.zeros(1, 3, 29, 29), tmp_path / "net.onnx", stem="int8")
    assert list(tmp_path.iterdir()) == []


class Shortcuts(nn.Module):
    """Shortcuts without parameters around strided layers, on the stem's floats; a ``view`` of what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 31, 3, padding=1)
        self.first = BinaryConv2d(31, 33, 3, 2, 1)
        self.second = BinaryConv2d(33, 33, 2, 2)
        self.head = nn.Linear(33 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.first(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        x = self.second(x) + F.avg_pool2d(x, 2)
        return self.head(x.view(x.size(0), -1))  # type: ignore[no-any-return]


class Viewed(nn.Module):
    """A stem whose result goes into ``view`` as it is, with a binary dense layer behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, padding=1)
        self.dense = BinaryLinear(7 * 64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.stem(x).view(x.size(0), -1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("network", [Shortcuts, Viewed])
def test_what_stands_behind_a_stem(target: str, network: type[nn.Module], tmp_path: Path) -> None:
    if target == "onnx":
        usable("onnxruntime")
    torch.manual_seed(0)
    path = tmp_path / f"net{TARGETS.load(target).suffix}"
    calibration = normal(16, 3, 8, 8)
    report = bnnedge.export(
        network().eval(), torch.from_numpy(calibration[:1]), path, target, stem="int8", calibration=calibration
    )
    if report.verification is None:
        pytest.skip(report.not_verified)
    assert report.verification.agreement == 1.0
