from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bnnedge.layers.hardtanh import Hardtanh, hardtanh_op


def borders(*shape: int, dtype: torch.dtype) -> Tensor:
    """Random values, 1 and -1 among them and their neighbours on both sides."""
    one = torch.ones((), dtype=dtype)
    near = torch.stack([one, torch.nextafter(one, one * 2), torch.nextafter(one, one * 0)])
    near = torch.cat([near, -near, torch.tensor([0.0, -0.0, torch.inf, -torch.inf], dtype=dtype)])
    return torch.where(torch.rand(shape) < 0.5, near[torch.randint(len(near), shape)], torch.randn(shape).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5, 4, 7), (9, 33), (2, 3, 4)])
def test_value_and_gradient_are_pytorchs_to_the_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    found = []
    x = borders(*shape, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x
    for function in (F.hardtanh, Hardtanh()):
        inputs = x.clone().requires_grad_()
        y = function(inputs)
        y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(dtype))
        found.append((y, inputs.grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None and theirs is not None and torch.equal(ours, theirs)


def test_keeps_a_bit_an_element() -> None:
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        Hardtanh()(torch.randn(2, 64, 3, 3, requires_grad=True))
    assert [(tensor.dtype, tensor.numel()) for tensor in kept] == [(torch.int32, 2 * 64 * 9 / 32)]


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last: bool) -> None:
    x = torch.randn(2, 3, 4, 5)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    torch.library.opcheck(hardtanh_op, (x.requires_grad_(), "auto"))
