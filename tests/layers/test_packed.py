"""The operators on a CPU; ``tests/kernels/gpu/portable/test_packed_layers.py`` has their GPU side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bnnedge.binarization.surrogate import clipped_identity
from bnnedge.errors import ConfigError
from bnnedge.kernels import native
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear, binary_layers, use_kernels
from bnnedge.layers.packed.conv import packed_conv2d
from bnnedge.layers.packed.linear import packed_linear
from bnnedge.layers.packed.operators import flat
from bnnedge.methods import METHODS

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "3x3": {"x": (2, 33, 5, 6), "weight": (7, 33, 3, 3), "padding": [1, 1]},
    "even_stride_2": {"x": (3, 32, 6, 8), "weight": (5, 32, 3, 3), "stride": [2, 2], "padding": [1, 1]},
    "1x1_stride_2": {"x": (1, 3, 7, 4), "weight": (2, 3, 1, 1), "stride": [2, 2]},
    "5x5_map_smaller": {"x": (2, 31, 2, 3), "weight": (4, 31, 5, 5), "padding": [2, 2]},
    "dilation": {"x": (1, 4, 7, 8), "weight": (3, 4, 3, 2), "stride": [1, 3], "padding": [2, 0], "dilation": [2, 3]},
    "groups": {"x": (2, 6, 5, 5), "weight": (4, 3, 3, 3), "padding": [1, 1], "groups": 2},
}
TIES = (0.0, -0.0, 1.0, -1.0, 1.0000001, -1.0000001, 1e-45, -1e-45)


def with_ties(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, dtype=dtype)
    return torch.where(torch.rand(shape) < 0.3, torch.tensor(TIES, dtype=dtype)[torch.randint(8, shape)], x)


def tensors(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    geometry = CONVOLUTIONS[name]
    return with_ties(*geometry["x"], dtype=dtype), torch.randn(geometry["weight"], dtype=dtype)


def arguments(name: str, clip: float, binary: bool, dtype: torch.dtype, kernels: str = "auto") -> tuple[Any, ...]:
    geometry = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1} | CONVOLUTIONS[name]
    rest = [geometry[key] for key in ("stride", "padding", "dilation", "groups")]
    return clip, binary, *rest, dtype, kernels


def plain(x: Tensor, weight: Tensor, name: str, clip: float) -> Tensor:
    geometry = {key: value for key, value in CONVOLUTIONS[name].items() if key not in ("x", "weight")}
    return F.conv2d(clipped_identity(x, clip), weight, **geometry)


def scaled_sign(latent: Tensor) -> Tensor:
    """A binary weight whose scales are no powers of 2."""
    shape = (-1, *[1] * (latent.dim() - 1))
    return clipped_identity(latent) * torch.linspace(0.1, 3, len(latent), dtype=latent.dtype).view(shape)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_convolution_and_gradients_are_plain_autograds_to_the_bit(name: str, binary: bool, channels_last: bool) -> None:
    x, latent = tensors(name)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    found = []
    for packed in (False, True):
        inputs = x.clone().requires_grad_(), latent.clone().requires_grad_()
        weight = scaled_sign(inputs[1]) if binary else inputs[1]
        if packed:
            y = packed_conv2d(inputs[0], weight, *arguments(name, 0.75, binary, x.dtype))[0]
        else:
            y = plain(inputs[0], weight, name, 0.75)
        y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape))
        found.append((y, inputs[0].grad, inputs[1].grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None and theirs is not None and torch.equal(ours, theirs)


@pytest.mark.parametrize("binary", [False, True])
def test_dense_layer_and_gradients_are_plain_autograds_to_the_bit(binary: bool) -> None:
    found = []
    x, latent = with_ties(5, 33), torch.randn(7, 33)
    for packed in (False, True):
        inputs = x.clone().requires_grad_(), latent.clone().requires_grad_()
        weight = scaled_sign(inputs[1]) if binary else inputs[1]
        if packed:
            y = packed_linear(inputs[0], weight, 1.0, binary, x.dtype, "auto")[0]
        else:
            y = F.linear(clipped_identity(inputs[0]), weight)
        y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape))
        found.append((y, inputs[0].grad, inputs[1].grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None and theirs is not None and torch.equal(ours, theirs)


def test_gradient_in_float64_against_finite_differences() -> None:
    """The weight's gradient is a true derivative; the input's is that of the straight-through estimator, so its dense
    part is checked as the derivative in a factor on the signs."""
    x, weight = tensors("3x3", torch.float64)
    rest = arguments("3x3", math.inf, False, torch.float64)

    def convolve(w: Tensor) -> Tensor:
        y: Tensor = packed_conv2d(x, w, *rest)[0]
        return y

    assert torch.autograd.gradcheck(convolve, weight[:2].clone().requires_grad_())
    x.requires_grad_()
    g = torch.randn_like(convolve(weight))
    convolve(weight).backward(g)
    factor = torch.ones_like(x, requires_grad=True)
    plain(x.detach(), weight, "3x3", 1.0)
    signs = clipped_identity(x.detach())
    F.conv2d(signs * factor, weight, padding=1).backward(g)
    assert x.grad is not None and factor.grad is not None
    torch.testing.assert_close(x.grad * signs, factor.grad, rtol=1e-12, atol=1e-12)  # sums of 63 terms of float64


@pytest.mark.parametrize("clip", [1.0, math.inf])
def test_nan_counts_as_plus_one_and_passes_no_gradient_if_clipped(clip: float) -> None:
    x = torch.tensor([[math.nan, -1.0, 1.0]], requires_grad=True)
    weight = torch.tensor([[1.0, -1.0, 1.0]])
    y = packed_linear(x, weight, clip, True, x.dtype, "auto")[0]
    assert y.item() == 3
    y.backward()
    assert x.grad is not None and x.grad.tolist() == [[0.0 if clip == 1 else 1.0, -1.0, 1.0]]


def test_stash_is_a_quarter_byte_an_element() -> None:
    x, weight = with_ties(4, 64, 8, 8).requires_grad_(), scaled_sign(torch.randn(32, 64, 3, 3)).requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        packed_conv2d(x, weight, *arguments("3x3", 1.0, True, x.dtype))
    sizes = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    assert sizes == x.numel() / 4 + weight.numel() / 8 + 32 * 4


OPERATORS = [(packed_conv2d, name) for name in ("3x3", "groups")] + [(packed_linear, "")]


@pytest.mark.parametrize(("operator", "name"), OPERATORS)
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(operator: Any, name: str, binary: bool, channels_last: bool) -> None:
    if operator is packed_conv2d:
        x, weight = tensors(name)
        rest = arguments(name, 1.0, binary, torch.float32)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
    else:
        x, weight = torch.randn(3, 33), torch.randn(5, 33)
        rest = (1.0, binary, torch.float32, "auto")
    weight = scaled_sign(weight) if binary else weight
    arguments_ = (x.requires_grad_(), weight.detach().requires_grad_(), *rest)
    torch.library.opcheck(operator, arguments_)


SCHEMAS = {
    "packed_conv2d": "(Tensor x, Tensor weight, float clip, bool binary_weight, SymInt[] stride, SymInt[] padding, "
    "SymInt[] dilation, SymInt groups, ScalarType out_dtype, str kernels, Tensor? signs=None, Tensor? counts=None, "
    "bool bn_sums=False) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "packed_conv2d_backward": "(Tensor g, Tensor signs, Tensor mask, Tensor filters, Tensor scale, Tensor? weight, "
    "SymInt[] x_shape, bool x_channels_last, ScalarType x_dtype, SymInt[] weight_shape, ScalarType weight_dtype, "
    "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, bool needs_x, bool needs_weight, "
    "str kernels) -> (Tensor, Tensor)",
    "packed_linear": "(Tensor x, Tensor weight, float clip, bool binary_weight, ScalarType out_dtype, str kernels) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    "packed_linear_backward": "(Tensor g, Tensor signs, Tensor mask, Tensor filters, Tensor scale, Tensor? weight, "
    "SymInt[] x_shape, bool x_channels_last, ScalarType x_dtype, SymInt[] weight_shape, ScalarType weight_dtype, "
    "bool needs_x, bool needs_weight, str kernels) -> (Tensor, Tensor)",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_those_that_saved_programs_hold(name: str) -> None:
    assert str(getattr(torch.ops.bnnedge, name).default._schema) == f"bnnedge::{name}{SCHEMAS[name]}"


@dataclass(frozen=True)
class _Some:
    x: Tensor
    sizes: list[int]
    kind: str = "auto"


def _echo(a: _Some) -> tuple[Tensor, Tensor]:
    return a  # type: ignore[return-value]


def test_arguments_one_by_one_are_the_fields_of_their_dataclass() -> None:
    x, taken = torch.zeros(1), flat(_echo)
    assert taken(x, [1, 2]) == _Some(x, [1, 2]) and taken(x, sizes=[3], kind="torch") == _Some(x, [3], "torch")
    assert taken(*vars(_Some(x, [4], "triton")).values()) == _Some(x, [4], "triton")
    schema = torch.library.infer_schema(taken, mutates_args=())
    assert schema == '(Tensor x, SymInt[] sizes, str kind="auto") -> (Tensor, Tensor)'
    with pytest.raises(TypeError):
        taken(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 33, 3, padding=1)
        self.body = BinaryConv2d(33, 32, 3, 2, 1, bias=True)
        self.norm = nn.BatchNorm2d(32)
        self.head = BinaryLinear(32 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(self.stem(x))).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["ste", "xnor", "bop", "bmd", "reactnet"])
def test_layers_train_as_in_plain_pytorch_to_the_bit(method: str) -> None:
    training_method = METHODS.load(method)
    model = Net()
    instance = training_method(training_method.Options())
    instance.attach(model)
    instance.start_phase(model, 0)
    x, found = torch.randn(4, 3, 6, 6), []
    for kernels in ("torch", "auto"):
        use_kernels(model, kernels)
        model.zero_grad()
        y = model(x)
        y.square().sum().backward()
        found.append([y, *[p.grad for p in model.parameters() if p.grad is not None]])
    assert len(found[0]) > 6 and all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_only_clipped_identities_are_packed() -> None:
    clips = {name: Net().body for name in METHODS}
    for name, layer in clips.items():
        layer.binarizer = METHODS.load(name)(METHODS.load(name).Options()).make_binarizer(layer)
    found = {name: layer.binarizer.input_clip for name, layer in clips.items()}
    packed = dict.fromkeys(("ste", "xnor", "bop", "bop2", "bmd", "bayesbinn"), 1.0)
    assert found == dict.fromkeys(METHODS) | packed
    for options, clip in (
        ({"surrogate": "identity"}, math.inf),
        ({"activation_clip": 1.25}, 1.25),
        ({"surrogate": "swish_sign"}, None),
        ({"a32": True}, None),
    ):
        ste = METHODS.load("ste")
        assert ste(ste.Options(**options)).make_binarizer(clips["ste"]).input_clip == clip


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_frozen_side_gets_no_gradient(frozen: str) -> None:
    x, weight = tensors("3x3")
    inputs = {"input": x, "weight": weight}
    for name, tensor in inputs.items():
        tensor.requires_grad_(name != frozen)
    packed_conv2d(x, weight, *arguments("3x3", 1.0, False, x.dtype))[0].sum().backward()
    assert {name for name, tensor in inputs.items() if tensor.grad is None} == {frozen}


def gradients(model: nn.Module, function: Any, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    function(x).square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_checkpointing_recomputes_the_same() -> None:
    model, x = Net(), torch.randn(2, 3, 6, 6, requires_grad=True)
    expected = gradients(model, model, x)
    found = gradients(model, lambda x: checkpoint(model, x, use_reentrant=False), x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_graphs_are_whole_and_give_the_same_gradients() -> None:
    """Through Dynamo and AOTAutograd; what Inductor makes of the float layers around is not ours to test."""
    model, x = Net(), torch.randn(2, 3, 6, 6)
    expected = gradients(model, model, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = gradients(model, compiled, x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    model, x = Net().double(), torch.randn(2, 3, 6, 6, dtype=torch.float64).to(memory_format=torch.channels_last)
    # Without it a sum that is its channel's mean is 0 but for rounding, which would decide its sign.
    nn.init.normal_(model.norm.bias)
    expected = gradients(model, model, x)
    found = gradients(model, torch.compile(model, fullgraph=True), x)
    for a, b in zip(found, expected, strict=True):  # sums of up to 72 products in another order
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-10)


def test_export_keeps_the_operators_whole() -> None:
    program = torch.export.export(Net().train(), (torch.randn(2, 3, 6, 6),))
    names = {str(node.target) for node in program.graph.nodes}
    assert {"bnnedge.packed_conv2d.default", "bnnedge.packed_linear.default"} <= names


def test_autocast_returns_its_type_and_full_gradients() -> None:
    model, x = Net(), torch.randn(2, 3, 6, 6)
    types = []
    model.body.register_forward_hook(lambda layer, inputs, output: types.append(output.dtype))
    model.body.bias = None
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).square().sum()
    loss.backward()
    assert types == [torch.bfloat16]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_without_gradients_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Net(), torch.randn(2, 3, 6, 6)
    expected = model(x)
    monkeypatch.setattr("bnnedge.layers.stash.pack_input", None)
    with torch.no_grad():
        assert torch.equal(model(x), expected)


def test_without_the_native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Net(), torch.randn(2, 3, 6, 6)
    expected = gradients(model, model, x)
    monkeypatch.setattr(native, "available", lambda: False)
    found = gradients(model, model, x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_kernels_are_chosen_by_name() -> None:
    model = Net()
    use_kernels(model, "torch")
    assert [layer.kernels for layer in binary_layers(model).values()] == ["torch", "torch"]
    with pytest.raises(ConfigError, match="kernels must be auto, triton, torch, got 'cuda'"):
        use_kernels(model, "cuda")  # type: ignore[arg-type]
    use_kernels(model, "triton")
    with pytest.raises(ConfigError, match="kernels triton needs an NVIDIA GPU"):
        model(torch.randn(2, 3, 6, 6))
