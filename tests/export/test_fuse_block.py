"""What becomes one node of an ONNX file, and that the file computes the same in stock ONNX Runtime and on bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from bnnedge.export.graph import Binarize, BinarizeBelow, Block, Graph
from bnnedge.export.passes import optimize
from bnnedge.export.passes.fuse_block import fuse_blocks
from bnnedge.export.runtimes.ort import OnnxRuntime
from bnnedge.export.runtimes.ort_bnnedge import OnnxRuntimeBnnedge
from bnnedge.export.targets.onnx.target import OnnxTarget
from bnnedge.export.trace import trace
from bnnedge.export.verify import verify
from bnnedge.layers.binary_layers import BinaryConv2d
from bnnedge.layers.deploy import deploy


def normed(channels: int, *, positive: bool = False) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    if positive:
        norm.weight.data.abs_().add_(0.1)
    return norm


class Shift(nn.Module):
    """A learned shift per channel, the "move" of ReActNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class Step(nn.Module):
    """``after(norm(conv(before(x))) + x)``; the shortcut of a strided step is given."""

    def __init__(self, channels: int, after: nn.Module, before: nn.Module | None = None) -> None:
        super().__init__()
        self.before = nn.Identity() if before is None else before
        self.conv = BinaryConv2d(channels, channels, 3, padding=1)
        self.norm = normed(channels)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.norm(self.conv(self.before(x))) + x)  # type: ignore[no-any-return]


class Down(nn.Module):
    """Half the size, twice the channels; both branches binary, as in the ResNets for small images."""

    def __init__(self, channels: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv = BinaryConv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.norm = normed(2 * channels)
        self.shortcut = shortcut
        self.act = nn.Hardtanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)) + self.shortcut(x))  # type: ignore[no-any-return]


class ClipAfterUse(nn.Module):
    """The sign of a sum is used before the sum is clipped."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = BinaryConv2d(channels, channels, 3, padding=1), BinaryConv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) * 0.1 + x
        z = self.second(y) * 0.1
        return nn.functional.hardtanh(y) + z  # type: ignore[no-any-return]


class Centered(nn.Module):
    """Signs around the mean of the image, as RBNN takes them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = BinaryConv2d(channels, channels, 3, padding=1), normed(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x - x.mean((1, 2, 3), keepdim=True))) + x  # type: ignore[no-any-return]


def rprelu(channels: int) -> nn.Module:
    return nn.Sequential(Shift(channels), nn.PReLU(channels, 0.3), Shift(channels))


def pooled_shortcut(channels: int) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels, 2 * channels, 1), normed(2 * channels))


def strided_shortcut(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False), normed(2 * channels))


def binary_shortcut(channels: int) -> nn.Module:
    return nn.Sequential(BinaryConv2d(channels, 2 * channels, 1, stride=2), normed(2 * channels))


C = 33
NETS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "small images": (
        lambda: nn.Sequential(Step(C, nn.Hardtanh()), Step(C, nn.Hardtanh())),
        ["PackSigns", "PackedConv2dAddClipSign", "PackedConv2dAddClip"],
    ),
    "Bi-Real": (
        lambda: nn.Sequential(Step(C, nn.Identity()), Step(C, nn.Identity())),
        ["PackSigns", "PackedConv2dAddSign", "PackedConv2dAdd"],
    ),
    "PReLU": (
        lambda: nn.Sequential(Step(C, nn.PReLU(C, -0.5)), Step(C, nn.PReLU())),
        ["PackSigns", "PackedConv2dAddPReluSign", "PackedConv2dAddPRelu"],
    ),
    "ReActNet": (
        lambda: nn.Sequential(*(Step(C, rprelu(C), Shift(C)) for _ in range(2))),
        ["PackSigns", "PackedConv2dAddPReluSign", "PackedConv2dAddPRelu"],
    ),
    "norm before the sign": (
        lambda: nn.Sequential(*(Step(C, nn.Identity(), normed(C, positive=True)) for _ in range(2))),
        ["PackSigns", "PackedConv2dAddSign", "PackedConv2dAdd"],
    ),
    "norm of both signs before the sign": (
        lambda: nn.Sequential(*(Step(C, nn.Identity(), normed(C)) for _ in range(2))),
        ["PackSigns", "PackedConv2dAdd", "PackSigns", "PackedConv2dAdd"],
    ),
    "binary shortcut": (
        lambda: nn.Sequential(Down(C, binary_shortcut(C)), Step(2 * C, nn.Hardtanh())),
        ["PackSigns", "PackedConv2d", "PackedConv2dAddClipSign", "PackedConv2dAddClip"],
    ),
    "pooled shortcut": (
        lambda: nn.Sequential(Down(C, pooled_shortcut(C)), Step(2 * C, nn.Hardtanh())),
        ["PackSigns", "PackedConv2dAddClipSign", "PackedConv2dAddClip"],
    ),
    "strided shortcut": (
        lambda: nn.Sequential(Step(C, nn.Hardtanh()), Down(C, strided_shortcut(C))),
        ["PackSigns", "PackedConv2dAddClipSign", "PackedConv2dAddClip"],
    ),
    "clip after use": (lambda: ClipAfterUse(C), ["PackSigns", "PackedConv2dAddClipSign", "PackedConv2dAdd"]),
    "centered": (lambda: nn.Sequential(Centered(C), Centered(C)), ["PackSigns", "PackedConv2dAdd"] * 2),
    "relu": (
        lambda: nn.Sequential(Step(C, nn.ReLU()), nn.Conv2d(C, 10, 1), BinaryConv2d(10, 8, 3, groups=2)),
        ["PackSigns", "PackedConv2dAddClip", "BinaryConv2d"],
    ),
    "pooled bits": (
        lambda: nn.Sequential(
            BinaryConv2d(C, 40, 3, padding=1), nn.MaxPool2d(2), normed(40, positive=True), BinaryConv2d(40, 8, 1)
        ),
        ["PackSigns", "PackedConv2dThreshold", "PackedMaxPool2d", "PackedConv2d"],
    ),
    "groups": (
        lambda: nn.Sequential(
            BinaryConv2d(C, 64, 1), nn.PReLU(64), BinaryConv2d(64, 6, 3, groups=2), nn.Hardtanh(), BinaryConv2d(6, 7, 1)
        ),
        ["PackSigns", "PackedConv2dPReluSign", "PackedConv2dThreshold", "PackedConv2d"],
    ),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, C, 3, padding=1), NETS[name][0](), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    features = model.train()(torch.randn(16, 2, 8, 10))
    return nn.Sequential(*model, nn.Linear(features.shape[1], 5)).eval()


def traced(name: str) -> tuple[nn.Module, Graph]:
    model = network(name)
    return model, optimize(trace(deploy(model), torch.randn(2, 2, 8, 10)))


@pytest.mark.parametrize("name", NETS)
def test_networks(name: str) -> None:
    model, graph = traced(name)
    data = OnnxTarget().write(graph)
    nodes = onnx.load_model_from_string(data).graph.node
    assert [node.op_type for node in nodes if node.domain == "bnnedge"] == NETS[name][1]
    images = np.random.default_rng(1).standard_normal((64, 2, 8, 10)).astype(np.float32)
    found = verify(deploy(model), graph, data, OnnxRuntime, images)
    assert found.binary_layers == sum(1 for _ in graph.binary_nodes()) and found.integers > 0
    for batch in (1, 5):
        own, stock = (runtime.open(data).run(images[:batch]) for runtime in (OnnxRuntimeBnnedge, OnnxRuntime))
        np.testing.assert_array_equal(own.view(np.uint32), stock.view(np.uint32))


@pytest.mark.parametrize("name", ["small images", "Bi-Real", "ReActNet", "strided shortcut"])
def test_nothing_is_transposed_between_binary_layers(name: str) -> None:
    nodes = onnx.load_model_from_string(OnnxTarget().write(traced(name)[1])).graph.node
    assert [node.op_type for node in nodes].count("Transpose") == 1  # behind the stem


def test_a_sign_before_a_clip_is_one_behind_it() -> None:
    """As long as the clip is needed: one image goes to NHWC, not two."""
    model = nn.Sequential(nn.Conv2d(2, C, 1), nn.Hardtanh(), Step(C, nn.Hardtanh()), nn.Flatten()).eval()
    nodes = onnx.load_model_from_string(
        OnnxTarget().write(optimize(trace(deploy(model), torch.randn(2, 2, 4, 4))))
    ).graph.node
    assert [node.op_type for node in nodes[:4]] == ["Conv", "Clip", "Transpose", "PackSigns"]


def fused(model: nn.Module, *shape: int) -> Graph:
    return fuse_blocks(optimize(trace(deploy(model), torch.randn(2, *shape))))


def test_limits_separate_the_same_floats_as_the_norm() -> None:
    """``x < limit`` for float32 x is ``x m + b < 0``, computed exactly."""
    norm = normed(C, positive=True)
    norm.train()(7 * torch.randn(8, C, 3, 3) + 2)
    model = nn.Sequential(nn.Conv2d(1, C, 1), nn.PReLU(), norm, BinaryConv2d(C, 4, 1))
    (below,) = (node for node in fused(model, 1, 3, 3).nodes if isinstance(node, BinarizeBelow))
    assert below.limit is not None
    limit = below.limit.astype(np.float32)
    m = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # type: ignore[union-attr]
    b = norm.bias.double() - norm.running_mean.double() * m  # type: ignore[union-attr]
    exact = (-b / m).detach().numpy()
    assert (limit >= exact).all() and (np.nextafter(limit, np.float32(-np.inf)) < exact).all()


def test_blocks_keep_what_others_read() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(BinaryConv2d(C, C, 1) for _ in range(3))
            self.act = nn.PReLU()

        def forward(self, x: Tensor) -> Tensor:
            y = self.convs[0](x)
            z = self.act(y)  # y has another reader
            return self.convs[1](z) + self.convs[2](y) + z  # type: ignore[no-any-return]

    graph = fused(Net(), C, 4, 4)
    blocks = [node for node in graph.nodes if isinstance(node, Block)]
    assert [(len(b.inputs), b.slope is not None, b.signs is not None) for b in blocks] == [
        (1, False, True),
        (1, False, False),
        (2, False, False),
    ]
    assert sum(isinstance(node, Binarize) for node in graph.nodes) == 2


def test_scales_that_are_not_one_are_no_offset() -> None:
    graph = fused(nn.Sequential(BinaryConv2d(C, 4, 1), nn.PReLU(), normed(4)), C, 4, 4)
    (block,) = (node for node in graph.nodes if isinstance(node, Block))
    assert block.slope is not None and block.offset is None and block.output != graph.output


def test_rows_of_a_fused_file() -> None:
    """All parameters of a block are its row's; a 1x1 convolution in NHWC is one row."""
    data = OnnxTarget().write(traced("strided shortcut")[1])
    rows: list[Any] = [
        (r.kind, r.input_shape, r.output_shape, r.binary_weights, r.float_params, r.float_macs)
        for r in OnnxTarget().describe(data)
    ]
    assert rows == [
        ("conv 3x3", (2, 8, 10), (C, 8, 10), 0, 19 * C, 18 * C * 80),
        ("binary conv 3x3", (C, 8, 10), (C, 8, 10), 9 * C * C, 2 * C, 0),
        ("conv 1x1", (C, 4, 5), (2 * C, 4, 5), 0, 2 * C * C, 2 * C * C * 20),
        ("binary conv 3x3", (C, 8, 10), (2 * C, 4, 5), 18 * C * C, 4 * C, 0),
        ("linear", (2 * C,), (5,), 0, 5 * (2 * C + 1), 10 * C),
    ]
    relu = OnnxTarget().describe(OnnxTarget().write(traced("relu")[1]))
    assert [r.float_params for r in relu if r.kind == "conv 1x1"] == [10 * (C + 1)]
    (alone,) = OnnxTarget().describe(
        OnnxTarget().write(optimize(trace(deploy(BinaryConv2d(C, 4, 1)), torch.randn(2, C, 3, 5))))
    )
    assert (alone.input_shape, alone.output_shape) == ((C, 3, 5), (4, 3, 5))
    react = OnnxTarget().describe(OnnxTarget().write(traced("ReActNet")[1]))
    # multiplier, bias, slope, offset, limit; the last block has no signs
    assert [row.float_params for row in react if row.binary_weights] == [5 * C, 4 * C]
