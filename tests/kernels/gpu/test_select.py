from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bnnedge.errors import ConfigError
from bnnedge.kernels.gpu import select as module
from bnnedge.kernels.gpu.select import PACKED, Op, for_capability, packed_pays, select

pytest.importorskip("triton")
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


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
    assert select(op, CUDA, 256) is PACKED[op].load(name)


def test_odd_layers_are_dense() -> None:
    for channels, groups in ((255, 1), (33, 1), (256, 2)):
        assert select("bconv2d", CUDA, channels, groups) is None
        assert select("bconv2d", CUDA, channels, groups, "triton") is None


def test_cpu() -> None:
    assert select("bconv2d", CPU, 256) is None


def test_triton_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="needs an NVIDIA GPU, the model is on cpu; take auto"):
        select("bconv2d", CPU, 256, kernels="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert select("bconv2d", CPU, 256, kernels="triton") is PACKED["bconv2d"].load("triton_popcount")
    assert select("bconv2d", CPU, 33, kernels="triton") is None


class Clock:
    """Says of each path what it was told, and counts how often it was asked."""

    def __init__(self, **milliseconds: float) -> None:
        self.milliseconds, self.asked = milliseconds, 0

    def __call__(self, work: Callable[[], object]) -> float:
        self.asked += 1
        return self.milliseconds[str(work())]


def pays(layer: str) -> bool:
    return packed_pays((layer,), lambda: "packed", lambda: "dense")


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_packed_is_faster", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


def test_the_faster_path_is_taken_and_measured_once_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(packed=2.0, dense=1.0)
    monkeypatch.setattr(module, "_milliseconds", clock)
    assert not pays("small") and not pays("small") and clock.asked == 2
    clock.milliseconds = {"packed": 1.0, "dense": 1.0}
    assert pays("large") and not pays("small") and clock.asked == 4


def test_a_captured_graph_is_not_measured_and_the_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(packed=2.0, dense=1.0)
    monkeypatch.setattr(module, "_milliseconds", clock)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert pays("layer") and clock.asked == 0
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert pays("layer") and clock.asked == 0


def test_deterministic_runs_do_not_depend_on_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_milliseconds", Clock(packed=2.0, dense=1.0))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert pays("layer")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    assert not pays("layer")


@pytest.mark.parametrize(("op", "name"), [(op, name) for op in PACKED for name in PACKED[op]])
def test_every_implementation_can_be_loaded(op: str, name: str) -> None:
    assert callable(PACKED[op].load(name))
