"""``bnnedge/layers/block_tail.py`` on Triton kernels, alone, between binary convolutions, and in whole networks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnedge.benchmarks.gpu.stash import kept_bytes
from bnnedge.kernels.gpu import pack
from bnnedge.layers import block_tail
from bnnedge.layers.binary_layers import BinaryConv2d, recompute_outputs, use_kernels
from bnnedge.layers.block_tail import normalize_add_clip
from bnnedge.layers.hardtanh import Hardtanh
from bnnedge.models.parts.blocks import BinaryBasicBlock, DoubleSkipBlock
from bnnedge.models.parts.shortcuts import binary_shortcut, float_shortcut
from bnnedge.models.resnet import BinaryResNet
from bnnedge.models.resnet_imagenet import BinaryImageNetResNet

SHAPES = [(2, 32, 5, 7), (1, 64, 9, 3), (3, 96, 1, 2), (1, 33, 17, 5)]


def norm(channels: int, eps: float = 1e-5) -> nn.BatchNorm2d:
    """A batch norm with gains of both signs and running statistics that are no longer the initial ones."""
    bn = nn.BatchNorm2d(channels, eps=eps, momentum=0.3)
    for tensor in (bn.weight, bn.bias, bn.running_mean):
        assert tensor is not None
        tensor.data.normal_()
    return bn


def tail(bn: nn.BatchNorm2d, y: Tensor, residual: Tensor | None) -> Tensor:
    act = Hardtanh()
    act.kernels = "triton"
    return normalize_add_clip(bn, act, y, residual)


def plain(bn: nn.BatchNorm2d, y: Tensor, residual: Tensor | None) -> Tensor:
    x = bn(y)
    return F.hardtanh(x if residual is None else x + residual)


def results(
    function: Callable[..., Tensor], bn: nn.BatchNorm2d, y: Tensor, residual: Tensor | None, g: Tensor
) -> dict[str, Tensor]:
    """z, all gradients and the statistics afterwards, on the CPU."""
    y = y.clone().requires_grad_()
    residual = None if residual is None else residual.clone().requires_grad_()
    z = function(bn, y, residual)
    z.backward(g)
    found = {"z": z, "dy": y.grad, "dweight": bn.weight.grad, "dbias": bn.bias.grad, **dict(bn.named_buffers())}
    found |= {} if residual is None else {"dresidual": residual.grad}
    return {name: tensor.detach().cpu() for name, tensor in found.items() if tensor is not None}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_against_plain_pytorch_in_float64(
    device: torch.device, shape: tuple[int, ...], has_residual: bool, channels_last: bool
) -> None:
    """x, |x| < 16, is a sum of three float32 terms: 16 * 2^-22. Sums of n < 100 gradients, |g| < 5, times |u| < 5 in
    float32, then a gain below 4 / std with std > 1/4: 100 * 5 * 5 * 2^-24 * 16 < 2^-8 at the very worst, and
    errors of random signs grow as the root of that number."""
    y, residual, g = torch.randn(shape) * 3 + 1, torch.randn(shape), torch.randn(shape)
    if channels_last:
        y, g = (t.contiguous(memory_format=torch.channels_last) for t in (y, g))
    bn = norm(shape[1])
    twin = copy.deepcopy(bn).double()
    shortcut = residual if has_residual else None
    expected = results(plain, twin, y.double(), None if shortcut is None else shortcut.double(), g.double())
    there = [None if t is None else t.to(device) for t in (y, shortcut, g)]
    found = results(tail, bn.to(device), *there)  # type: ignore[arg-type]
    assert found.keys() == expected.keys() and found.pop("num_batches_tracked") == 1
    assert found["z"].dtype == torch.float32 and found["dy"].shape == shape
    for name, ours in found.items():
        bound = 16 * 2**-22 if name == "z" else 2**-15
        torch.testing.assert_close(ours, expected[name].float(), rtol=2**-20, atol=bound, msg=name)
    if has_residual:
        assert torch.equal(found["dresidual"] == 0, expected["dresidual"] == 0), "the masks are the same"


@pytest.mark.parametrize("has_residual", [False, True])
def test_ties_are_plain_pytorchs_to_the_bit(device: torch.device, has_residual: bool) -> None:
    """As many 1 as -1 in each channel and an eps of 3: mean 0, invstd 1/2, and all numbers are multiples of powers of
    two with sums over 32 elements, so that nothing rounds. x is 0, -0.0, 1 and -1 in many places, and next to them."""
    shape = (2, 64, 4, 4)
    order = torch.rand(32, 64).argsort(0)
    y = (order % 2 * 2 - 1).float().view(2, 4, 4, 64).permute(0, 3, 1, 2)
    near = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 2**-20, -(2**-20)])
    residual = near[torch.randint(len(near), shape)] if has_residual else None
    g = torch.randint(-4, 5, shape).float()
    bn = norm(64, eps=3.0)
    with torch.no_grad():
        bn.weight.copy_(torch.tensor([2.0, -2.0, 1.0, 4.0]).repeat(16))
        bn.bias.copy_(torch.tensor([0.0, 0.0, 0.5, -1.0]).repeat(16))
    twin = copy.deepcopy(bn).double()
    expected = results(plain, twin, y.double(), None if residual is None else residual.double(), g.double())
    x = plain(copy.deepcopy(twin), y.double(), None if residual is None else residual.double())
    assert (x == 0).any() and (x.abs() == 1).sum() > 100
    found = results(tail, bn.to(device), y.to(device), None if residual is None else residual.to(device), g.to(device))
    assert found.pop("num_batches_tracked") == 1
    for name in found.keys() - {"running_mean", "running_var"}:
        assert torch.equal(found[name].double(), expected[name].double()), name


def test_nan_stays_in_z_and_stops_the_gradient(device: torch.device) -> None:
    y, residual = torch.randn(2, 32, 2, 2), torch.zeros(2, 32, 2, 2)
    residual[0, 3, 1, 1], residual[1, 5, 0, 0], residual[1, 6, 0, 0] = math.nan, math.inf, -math.inf
    found = results(tail, norm(32).to(device), y.to(device), residual.to(device), torch.ones_like(y).to(device))
    assert found["z"].isnan().nonzero().tolist() == [[0, 3, 1, 1]]
    assert found["z"][1, 5:7, 0, 0].tolist() == [1, -1]
    assert found["dresidual"][residual != 0].eq(0).all() and found["dy"].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_types_are_plain_pytorchs(device: torch.device, dtype: torch.dtype) -> None:
    y = torch.randn(2, 32, 3, 3, device=device).half().requires_grad_()
    residual = torch.randn(2, 32, 3, 3, device=device).to(dtype).requires_grad_()
    bn = norm(32).to(device)
    z = tail(bn, y, residual)
    z.sum().backward()
    assert z.dtype == dtype and y.grad is not None and y.grad.dtype == torch.float16
    assert residual.grad is not None and residual.grad.dtype == dtype and bn.weight.grad is not None


@pytest.mark.parametrize("frozen", ["y", "residual", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient(device: torch.device, frozen: str) -> None:
    bn = norm(32).to(device)
    y, residual = (torch.randn(2, 32, 3, 3, device=device) for _ in range(2))
    sides = {"y": y, "residual": residual, "weight": bn.weight, "bias": bn.bias}
    for name, tensor in sides.items():
        tensor.requires_grad_(name != frozen)
    tail(bn, y, residual).sum().backward()
    assert {name for name, tensor in sides.items() if tensor.grad is None} == {frozen}


@pytest.mark.parametrize("has_residual", [False, True])
def test_opcheck(device: torch.device, has_residual: bool) -> None:
    y, residual = (torch.randn(2, 33, 3, 4, device=device, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(33, device=device, requires_grad=True) for _ in range(2))
    mean, invstd = torch.randn(33, device=device), torch.rand(33, device=device)
    operands = (y, residual if has_residual else None, weight, bias, mean, invstd)
    torch.library.opcheck(block_tail.normalize_add_clip_op, operands)
    running = (torch.zeros(33, device=device), torch.ones(33, device=device))
    torch.library.opcheck(block_tail.batch_statistics, (y.detach(), *running, 1e-5, 0.1, None, None))


class Pair(nn.Module):
    """A tail between two binary convolutions."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.conv1 = BinaryConv2d(32, channels, 3, 2, 1)
        self.bn = norm(channels)
        self.act = Hardtanh()
        self.conv2 = BinaryConv2d(channels, 5, 1)

    def forward(self, x: Tensor, change: bool = False) -> Tensor:
        z = normalize_add_clip(self.bn, self.act, self.conv1(x))
        return self.conv2(z.sub_(0.5) if change else z)  # type: ignore[no-any-return]


def step(model: nn.Module, *inputs: Any, forward: Callable[..., Tensor] | None = None) -> dict[str, Tensor]:
    """Output, gradients and statistics of ``model`` after a step, which ``forward`` takes in its place."""
    model.zero_grad()
    y = (model if forward is None else forward)(*inputs)
    y.square().sum().backward()
    named = {name: p.grad for name, p in model.named_parameters()}
    return {"y": y.detach(), **{n: g for n, g in named.items() if g is not None}, **dict(model.named_buffers())}


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor], step: float) -> None:
    """Equal but for ``step`` of the largest number in a tensor, in a gradient of the largest of all gradients: some
    are sums that cancel, of numbers as large as those."""
    assert found.keys() == expected.keys()
    gradients = [name for name in expected if name.endswith(("weight", "bias"))]
    steepest = max(float(expected[name].abs().max()) for name in gradients)
    for name, theirs in expected.items():
        largest = steepest if name in gradients else float(theirs.abs().max())
        torch.testing.assert_close(found[name].cpu(), theirs, rtol=0, atol=step * largest, msg=name)


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes that were packed by themselves."""
    shapes: list[tuple[int, ...]] = []
    original = pack.sign_pack

    def sign_pack(x: Tensor, clip: float = 1.0) -> Any:
        shapes.append(tuple(x.shape))
        return original(x, clip)

    monkeypatch.setattr(pack, "sign_pack", sign_pack)
    return shapes


def test_the_next_convolution_packs_nothing(device: torch.device, packings: list[tuple[int, ...]]) -> None:
    model, x = Pair(), torch.randn(2, 32, 6, 5)
    twin = copy.deepcopy(model)
    use_kernels(twin, "torch")
    expected = step(twin, x)
    use_kernels(model.to(device), "triton")
    assert_alike(step(model, x.to(device)), expected, 2**-20)
    assert sorted(packings) == sorted([(2, 6, 5, 32), (64, 3, 3, 32), (5, 1, 1, 64)]), "the image and both weights"


@pytest.mark.parametrize("why", ["changed in place", "smaller clip"])
def test_bits_that_do_not_fit_are_packed_again(
    device: torch.device, packings: list[tuple[int, ...]], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, change = Pair(), torch.randn(2, 32, 6, 5), why == "changed in place"
    if not change:
        monkeypatch.setattr(type(model.conv2.binarizer), "input_clip", 0.75)
    twin = copy.deepcopy(model)
    use_kernels(twin, "torch")
    if not change:
        for layer in (twin.conv1, twin.conv2):
            layer.kernels = "auto"
    expected = step(twin, x, change)
    use_kernels(model.to(device), "triton")
    assert_alike(step(model, x.to(device), change), expected, 2**-20)
    assert (2, 3, 3, 64) in packings


def test_sums_of_the_convolution_are_used_unless_it_was_changed(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    original = block_tail.batch_statistics

    def spy(*arguments: Any) -> Any:
        given.append(arguments[5] is not None)
        return original(*arguments)

    monkeypatch.setattr(block_tail, "batch_statistics", spy)
    conv, bn = BinaryConv2d(32, 64, 3).to(device), norm(64).to(device)
    x = torch.randn(2, 32, 5, 5, device=device)
    for layer in (conv, BinaryConv2d(32, 64, 3, bias=True).to(device)):
        use_kernels(layer, "triton")
        tail(bn, layer(x), None)
    y = conv(x)
    expected = plain(copy.deepcopy(bn), y * 2, None)
    torch.testing.assert_close(tail(bn, y.mul_(2), None), expected, rtol=0, atol=2**-18)
    with torch.no_grad():
        conv(x)
    assert given == [True, False, False]


def test_kept_is_a_bit_an_element_if_the_convolution_runs_again(device: torch.device) -> None:
    model, x = Pair().to(device), torch.randn(2, 32, 6, 5, device=device)
    use_kernels(model, "triton")
    found, sizes = [], []
    for recompute in (False, True):
        if recompute:
            recompute_outputs(model)
        twin = copy.deepcopy(model)
        sizes.append(kept_bytes([twin], twin, lambda twin=twin: twin(x)))  # type: ignore[misc]
        found.append(step(twin, x))
    image, inner, weights = 2 * 6 * 5 * 32, 2 * 3 * 3 * 64, 64 * 32 * 9 + 5 * 64
    # Bits of both signs, of the image's clip and the hardtanh's mask, of the weights; scales, mean and invstd.
    bits = (2 * image + 2 * inner + weights) // 8 + 4 * (64 + 5 + 2 * 64)
    assert sizes == [bits + 4 * inner, bits]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def blocks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    return {
        "basic": (BinaryBasicBlock(32, 32, 1, nn.Identity()), (2, 32, 5, 3)),
        "basic_stride_2": (BinaryBasicBlock(32, 64, 2, binary_shortcut(32, 64, 2)), (1, 32, 7, 5)),
        "double_skip": (DoubleSkipBlock(64, 64, 1, nn.Identity()), (1, 64, 5, 3)),
        "double_skip_stride_2": (DoubleSkipBlock(64, 96, 2, float_shortcut(64, 96, 2)), (2, 64, 7, 5)),
    }


def shake_norms(model: nn.Module) -> None:
    """Gains and biases at random: an integer that is its channel's mean would be a tie that roundings decide."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)


@pytest.mark.parametrize(
    ("name", "compiled"),
    [*[(name, False) for name in blocks()], ("basic_stride_2", True), ("double_skip", True)],
)
def test_block_is_plain_pytorchs(device: torch.device, name: str, compiled: bool) -> None:
    """Sums of at most 64 rounded terms in another order: 2^-18. The signs are the same: no z is so near to 0 here."""
    block, shape = blocks()[name]
    shake_norms(block)
    twin, x = copy.deepcopy(block), torch.rand(shape) * 2 - 1
    use_kernels(twin, "torch")
    expected = step(twin, x)
    use_kernels(block.to(device), "triton")
    forward = torch.compile(block, fullgraph=True, backend="aot_eager") if compiled else None
    assert_alike(step(block, x.to(device), forward=forward), expected, 2**-18)


@pytest.mark.parametrize(
    ("form", "depths", "size"), [(BinaryImageNetResNet, (2, 2, 2, 2), (33, 35)), (BinaryResNet, (1, 1, 1, 1), (12, 12))]
)
def test_network_trains_as_plain_pytorch(
    device: torch.device,
    form: type[BinaryResNet | BinaryImageNetResNet],
    depths: tuple[int, ...],
    size: tuple[int, int],
) -> None:
    """The stages of resnet18_1w1a with fewer channels; the first one runs densely. Signs are the same everywhere; the
    roundings of a block, as above, pass four times through others on their way."""
    model = form(5, 3, depths, (33, 32, 32, 64))
    shake_norms(model)
    twin, x = copy.deepcopy(model), torch.randn(2, 3, *size)
    use_kernels(twin, "torch")
    expected = step(twin, x)
    use_kernels(model.to(device), "triton")
    assert_alike(step(model, x.to(device)), expected, 2**-16)
