"""The operators of ``bnnedge/layers/packed/`` on Triton kernels.

Gradients are small integers and weights multiples of powers of two, so that every sum is exact in float32 whatever its
order: results are compared for equality.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bnnedge.binarization.surrogate import clipped_identity
from bnnedge.kernels.gpu import bits
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear, use_kernels
from bnnedge.layers.hardtanh import hardtanh_op
from bnnedge.layers.packed.conv import conv2d_again, packed_conv2d
from bnnedge.layers.packed.linear import packed_linear

CONVOLUTIONS: dict[str, tuple[Any, ...]] = {
    "3x3": ((2, 64, 5, 6), (33, 64, 3, 3), [1, 1], [1, 1], [1, 1], 1),
    "even_stride_2": ((1, 32, 6, 8), (5, 32, 3, 3), [2, 2], [1, 1], [1, 1], 1),
    "5x5_map_smaller": ((2, 32, 2, 3), (4, 32, 5, 5), [1, 1], [2, 2], [1, 1], 1),
    "dense_33_channels": ((2, 33, 4, 5), (3, 33, 1, 1), [2, 2], [0, 0], [1, 1], 1),
    "dense_groups": ((1, 64, 5, 5), (4, 32, 3, 3), [1, 1], [1, 1], [1, 1], 2),
}
TIES = (0.0, -0.0, 1.0, -1.0, 0.75, -0.75, 0.8125, -0.8125)


def with_ties(*shape: int) -> Tensor:
    return torch.where(torch.rand(shape) < 0.3, torch.tensor(TIES)[torch.randint(8, shape)], torch.randn(shape))


def binary_weight(latent: Tensor, scaled: bool) -> Tensor:
    powers = 2.0 ** (torch.arange(len(latent), device=latent.device) % 5 - 2) if scaled else torch.ones(len(latent))
    return clipped_identity(latent) * powers.to(latent.device).view(-1, *[1] * (latent.dim() - 1))


def compare(plain: Any, packed: Any, x: Tensor, latent: Tensor, device: torch.device) -> None:
    """``plain`` here against ``packed`` there: output and both gradients."""
    found = []
    for function, place in ((plain, torch.device("cpu")), (packed, device)):
        inputs = x.to(place, copy=True).requires_grad_(), latent.to(place, copy=True).requires_grad_()
        y = function(*inputs)
        generator = torch.Generator().manual_seed(1)
        y.backward(torch.randint(-4, 5, y.shape, generator=generator).to(y))
        found.append((y, inputs[0].grad, inputs[1].grad))
    for name, theirs, ours in zip(("y", "dx", "dw"), *found, strict=True):
        assert ours is not None and theirs is not None and torch.equal(ours.cpu(), theirs), name


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("weights", ["signs", "scaled", "float"])
def test_convolution(device: torch.device, name: str, weights: str) -> None:
    x_shape, weight_shape, stride, padding, dilation, groups = CONVOLUTIONS[name]
    binary = weights != "float"

    def weight(latent: Tensor) -> Tensor:
        return binary_weight(latent, weights == "scaled") if binary else latent

    def plain(x: Tensor, latent: Tensor) -> Tensor:
        return F.conv2d(clipped_identity(x, 0.75), weight(latent), None, stride, padding, dilation, groups)

    def packed(x: Tensor, latent: Tensor) -> Tensor:
        geometry = (stride, padding, dilation, groups)
        y: Tensor = packed_conv2d(x, weight(latent), 0.75, binary, *geometry, x.dtype, "triton")[0]
        return y

    compare(plain, packed, with_ties(*x_shape), torch.randint(-16, 17, weight_shape) / 16, device)


@pytest.mark.parametrize("name", ["even_stride_2", "dense_33_channels"])
@pytest.mark.parametrize("binary", [False, True])
def test_convolution_run_again_from_its_bits(device: torch.device, name: str, binary: bool) -> None:
    x_shape, weight_shape, *geometry = CONVOLUTIONS[name]
    x, latent = with_ties(*x_shape).to(device), (torch.randint(-16, 17, weight_shape) / 16).to(device)
    weight = binary_weight(latent, True) if binary else latent
    outputs = packed_conv2d(x, weight, 1.0, binary, *geometry, x.dtype, "triton")
    again = conv2d_again(x, weight, outputs, *[*geometry, "triton"])
    assert torch.equal(again(), outputs[0]) and again().stride() == outputs[0].stride()


def test_hardtanh(device: torch.device) -> None:
    found = []
    x = with_ties(2, 33, 3, 2)
    for function in (F.hardtanh, lambda x: hardtanh_op(x.to(device), "triton")[0].cpu()):
        inputs = x.clone().requires_grad_()
        y = function(inputs)
        y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape))
        found.append((y, inputs.grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None and theirs is not None and torch.equal(ours, theirs)


@pytest.mark.parametrize(("x_type", "y_type"), [(torch.float32, torch.float16), (torch.float16, torch.float16)])
def test_half_precision(device: torch.device, x_type: torch.dtype, y_type: torch.dtype) -> None:
    """As autocast asks for it; sums of at most 72 products of up to 4 are exact in float16's 11 bits."""

    def packed(x: Tensor, latent: Tensor) -> Tensor:
        geometry = ([1, 1], [1, 1], [1, 1], 1)
        y: Tensor = packed_conv2d(x, binary_weight(latent, False), 1.0, True, *geometry, y_type, "triton")[0]
        assert y.dtype == y_type
        return y.float()

    def plain(x: Tensor, latent: Tensor) -> Tensor:
        return F.conv2d(clipped_identity(x).float(), binary_weight(latent, False), padding=1)

    x = with_ties(1, 32, 4, 4).to(x_type)
    compare(plain, packed, x, torch.randint(-16, 17, (8, 32, 3, 3)) / 16, device)


@pytest.mark.parametrize("features", [32, 33, 320])
@pytest.mark.parametrize("binary", [False, True])
def test_dense_layer(device: torch.device, features: int, binary: bool) -> None:
    def weight(latent: Tensor) -> Tensor:
        return binary_weight(latent, True) if binary else latent

    def packed(x: Tensor, latent: Tensor) -> Tensor:
        y: Tensor = packed_linear(x, weight(latent), 1.0, binary, x.dtype, "triton")[0]
        return y

    latent = torch.randint(-16, 17, (5, features)) / 16
    compare(lambda x, w: F.linear(clipped_identity(x), weight(w)), packed, with_ties(3, features), latent, device)


@pytest.mark.parametrize("name", ["even_stride_2", "dense_33_channels"])
def test_opcheck(device: torch.device, name: str) -> None:
    x_shape, weight_shape, *geometry = CONVOLUTIONS[name]
    x, weight = with_ties(*x_shape).to(device), binary_weight(torch.randn(weight_shape), False).to(device)
    inputs = (x.requires_grad_(), weight.requires_grad_(), 1.0, True, *geometry, torch.float32, "triton")
    torch.library.opcheck(packed_conv2d, inputs)


def test_stash_of_the_layers_in_memory(device: torch.device) -> None:
    """0.25 byte an element for the inputs, 1 bit and one scale a channel for the weights, besides what torch keeps."""
    conv, dense = BinaryConv2d(64, 32, 3, padding=1).to(device), BinaryLinear(32 * 16, 64).to(device)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    for layer in (conv, dense):
        use_kernels(layer, "triton")
    x = torch.randn(2, 64, 4, 4, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        dense(conv(x).flatten(1))
    parameters = {conv.weight.data_ptr(), dense.weight.data_ptr()}
    sizes = sum(tensor.numel() * tensor.element_size() for tensor in kept if tensor.data_ptr() not in parameters)
    weights = (conv.weight.numel() + dense.weight.numel()) / 8 + (32 + 64) * 4
    assert sizes == (x.numel() + 2 * 32 * 16) / 4 + weights


def test_places_of_a_large_batch_pass_32_bits(device: torch.device) -> None:
    """A block's indices at 2^31 elements and beyond, with the function that the kernels take theirs from."""
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def last_index(out_ptr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        if tl.program_id(0) == tl.num_programs(0) - 1:
            tl.store(out_ptr, tl.max(bits.offsets64(BLOCK, 0), axis=0))

    out = torch.zeros(1, dtype=torch.int64, device=device)
    last_index[(2049,)](out, BLOCK=2**20)
    assert out.item() == 2049 * 2**20 - 1 > 2**31
