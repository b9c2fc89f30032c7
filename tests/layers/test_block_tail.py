"""Where a block's tail is the plain expression; its kernels: ``tests/kernels/gpu/portable/test_block_tail.py``."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnedge.layers import block_tail
from bnnedge.layers.block_tail import normalize_add_clip
from bnnedge.layers.hardtanh import Hardtanh
from bnnedge.layers.notes import InputBits, attach, read
from bnnedge.layers.recompute import watch_norms
from bnnedge.train.distributed import ALONE
from bnnedge.train.global_batch_norm import GlobalBatchNorm


class Tail(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn: nn.Module = nn.BatchNorm2d(3)
        self.act: nn.Module = Hardtanh()
        self.act.kernels = "triton"

    def forward(self, y: Tensor, residual: Tensor | None) -> Tensor:
        return normalize_add_clip(self.bn, self.act, y, residual)


def with_hook(model: Tail) -> None:
    model.bn.register_forward_hook(lambda *_: None)


def with_backward_hook(model: Tail) -> None:
    model.act.register_full_backward_hook(lambda *_: None)


def with_plain_hardtanh(model: Tail) -> None:
    model.act = nn.Hardtanh()


def with_global_norm(model: Tail) -> None:
    assert isinstance(model.bn, nn.BatchNorm2d)
    model.bn = GlobalBatchNorm(model.bn, ALONE)


def on_plain_pytorch(model: Tail) -> None:
    model.act.kernels = "torch"  # type: ignore[assignment]


def without_momentum(model: Tail) -> None:
    model.bn = nn.BatchNorm2d(3, momentum=None)


def without_gain(model: Tail) -> None:
    model.bn = nn.BatchNorm2d(3, affine=False)


def without_statistics(model: Tail) -> None:
    model.bn = nn.BatchNorm2d(3, track_running_stats=False)


def with_frozen_statistics(model: Tail) -> None:
    model.bn.eval()


def in_float64(model: Tail) -> None:
    model.double()


OTHERS = [
    *(with_hook, with_backward_hook, with_plain_hardtanh, with_global_norm, on_plain_pytorch, without_momentum),
    *(without_gain, without_statistics, with_frozen_statistics, in_float64),
]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each call of the kernels, which do not run."""
    calls: list[None] = []

    def kernels(y: Tensor, *_: object) -> tuple[Tensor, ...]:
        calls.append(None)
        return y, y, y, y

    monkeypatch.setattr(block_tail, "batch_statistics", lambda y, *_: (y, y))
    monkeypatch.setattr(block_tail, "normalize_add_clip_op", kernels)
    return calls


def test_the_usual_tail_is_fused(fused: list[None]) -> None:
    model, y = Tail(), torch.randn(2, 3, 4, 5)
    model(y, y)
    watch_norms(model)
    model(y, None)
    assert len(fused) == 2


@pytest.mark.parametrize("change", OTHERS)
@pytest.mark.parametrize("has_residual", [False, True])
def test_others_are_the_plain_expression(fused: list[None], change: Callable[[Tail], None], has_residual: bool) -> None:
    model = Tail()
    change(model)
    twin, act = copy.deepcopy(model.bn), copy.deepcopy(model.act)
    act.kernels = "torch"  # type: ignore[assignment]
    dtype = torch.float64 if change is in_float64 else torch.float32
    y, residual = (torch.randn(2, 3, 4, 5, dtype=dtype) for _ in range(2))
    if change not in (with_plain_hardtanh, on_plain_pytorch):
        model.act.forward = F.hardtanh  # its own kernels need the interpreter
    expected = act(twin(y) + residual) if has_residual else act(twin(y))
    assert torch.equal(model(y, residual if has_residual else None), expected) and not fused
    assert all(torch.equal(a, b) for a, b in zip(model.bn.buffers(), twin.buffers(), strict=True))


@pytest.mark.parametrize(
    ("y", "residual"),
    [((2, 3, 4, 5), (2, 3, 1, 1)), ((2, 3, 4, 5), (3, 1, 1)), ((0, 3, 4, 5), (0, 3, 4, 5))],
)
def test_shapes_that_broadcast_and_empty_ones_are_the_plain_expression(
    fused: list[None], y: tuple[int, ...], residual: tuple[int, ...]
) -> None:
    model = Tail()
    model.act.forward = F.hardtanh
    try:
        model(torch.randn(y), torch.randn(residual))
    except ValueError as error:
        assert "Expected more than 1 value per channel" in str(error)
    assert not fused


def test_evaluation_and_no_gradients_are_the_plain_expression(fused: list[None]) -> None:
    model, y = Tail(), torch.randn(2, 3, 4, 5)
    model.act.forward = F.hardtanh
    with torch.no_grad():
        model(y, y)
    model.eval()(y, y)
    assert not fused


def test_a_cpu_is_left_alone(fused: list[None]) -> None:
    model, y = Tail(), torch.randn(2, 3, 4, 5)
    model.act.kernels = "auto"  # type: ignore[assignment]
    assert torch.equal(model(y, y), F.hardtanh(nn.BatchNorm2d(3)(y) + y)) and not fused


def test_a_note_holds_for_this_tensor_until_it_is_changed() -> None:
    x, note = torch.randn(3), InputBits(torch.zeros(1), torch.zeros(1))
    attach(x, note)
    assert read(x, InputBits) is note and read(x.detach(), InputBits) is None
    x.add_(1)
    assert read(x, InputBits) is None
