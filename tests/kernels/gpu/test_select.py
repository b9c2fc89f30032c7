from __future__ import annotations

import pytest
import torch

from bnnedge.errors import ConfigError
from bnnedge.kernels.gpu.select import PACKED, LayerShape, Op, for_capability, packable, pays, select

LARGE = LayerShape(channels=256, out_channels=256, taps=9)


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((7, 0), "triton_popcount"),
        ((7, 5), "triton_popcount"),
        ((8, 0), "bmma"),
        ((8, 6), "bmma"),
        ((8, 9), "bmma"),
        ((9, 0), "bmma"),
        ((10, 0), "int8_dot"),
        ((12, 0), "int8_dot"),
    ],
)
@pytest.mark.parametrize("op", PACKED)
def test_capability_decides(monkeypatch: pytest.MonkeyPatch, op: Op, capability: tuple[int, int], name: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert for_capability(capability) == name
    assert select(op, torch.device("cuda"), LARGE) == name in PACKED[op]


def test_small_and_odd_layers_are_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    device = torch.device("cuda")
    for shape in (LayerShape(32, 256, 9), LayerShape(256, 16, 9)):
        assert packable(shape) and not pays(shape)
        assert select("bconv2d", device, shape) == "dense"
        assert select("bconv2d", device, shape, "triton") == "bmma"
    for shape in (LayerShape(255, 256, 9), LayerShape(256, 256, 9, groups=2)):
        assert not packable(shape)
        assert select("bconv2d", device, shape, "triton") == "dense"


def test_cpu() -> None:
    assert select("bconv2d", torch.device("cpu"), LARGE) == "host"


def test_triton_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="needs an NVIDIA GPU, the model is on cpu; take auto"):
        select("bconv2d", torch.device("cpu"), LARGE, "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert select("bconv2d", torch.device("cpu"), LARGE, "triton") == "triton_popcount"
    assert select("bconv2d", torch.device("cpu"), LayerShape(33, 256), "triton") == "dense"


@pytest.mark.parametrize(("op", "name"), [(op, name) for op in PACKED for name in PACKED[op]])
def test_every_implementation_can_be_loaded(op: str, name: str) -> None:
    pytest.importorskip("triton")
    assert callable(PACKED[op].load(name))
