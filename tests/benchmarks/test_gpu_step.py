"""The benchmark of a training step, on the CPU: ours learns as the peer does, and keeps the bytes that it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bnnedge.benchmarks.gpu import step
from bnnedge.benchmarks.gpu.stash import kept_bytes
from bnnedge.errors import BenchmarkError

NET = """
from torch import nn
from bnnedge.layers.binary_layers import BinaryConv2d

def net(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 32, 3, 2), nn.BatchNorm2d(32), BinaryConv2d(32, 64, 3, 1, 1), nn.BatchNorm2d(64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.fixture
def setting(tmp_path: Path) -> step.Setting:
    (tmp_path / "net.py").write_text(NET)
    return step.Setting(f"{tmp_path / 'net.py'}:net", 9, 3, 4, "fp32", "cpu", compile=False)


def test_what_layers_keep() -> None:
    """x [2, 5, 4, 4] of the square is kept once, for both products; the weight and what others keep is not counted."""
    inner = nn.Conv2d(5, 3, 1, bias=False)
    model = nn.Sequential(nn.Conv2d(1, 5, 1), inner, nn.Sigmoid())
    assert kept_bytes([inner], model, lambda: model(torch.randn(2, 1, 4, 4))) == 4 * 2 * 5 * 4 * 4
    assert not inner._forward_hooks and not inner._forward_pre_hooks


def test_ours_keeps_bits_where_the_peer_keeps_floats(setting: step.Setting) -> None:
    ours, recomputing, peer = step.trainings(setting)
    assert [t.name for t in (ours, recomputing, peer)] == ["bnnedge", "bnnedge, recompute", "torch eager"]
    inputs, weights = 4 * 32 * 4 * 4, 64 * 32 * 9
    # The peer: x and sign(x), and sign(w). Ours: a bit each of sign and mask, and one for each weight with a float
    # for each filter.
    assert peer.kept_bytes == 4 * (2 * inputs + weights)
    assert ours.kept_bytes == recomputing.kept_bytes == (2 * inputs + weights) // 8 + 4 * 64


def test_ours_must_learn_as_the_peer_does(setting: step.Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    amount, implementations = step.implementations(setting, step.trainings(setting), check_steps=8)
    assert (amount.value, amount.unit) == (4.0, "images")
    for implementation in implementations[:2]:
        assert implementation.check is not None
        implementation.check()
    assert implementations[2].check is None
    monkeypatch.setattr(step, "LEARNING_RATE", 1.0)
    assert implementations[0].check is not None
    with pytest.raises(BenchmarkError, match="no time is taken of wrong results"):
        implementations[0].check()
