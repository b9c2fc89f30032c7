"""A new operator is a node, a handler and one form a target: added here for ``floor``, then each part left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import bnnedge
from bnnedge.errors import ExportError
from bnnedge.export import graph as g
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.targets import TARGETS
from bnnedge.export.targets.onnx.forms import FORMS
from bnnedge.export.targets.onnx.writer import OnnxWriter
from bnnedge.export.targets.tflite import writer as tflite_writer
from bnnedge.export.targets.tflite.float_forms import FLOAT_FORMS
from bnnedge.export.targets.tflite.lowering import Lowering
from bnnedge.export.trace.tracer import HANDLERS, Tracer, handles
from bnnedge.layers.binary_layers import BinaryConv2d

OPERATOR = "aten.floor.default"


@dataclass(kw_only=True)
class Floor(g.FloatNode, g.WeightlessNode):
    """The largest whole number that is not above ``x``."""

    def summands(self, inputs: g.Shapes) -> int:
        return 0


def handle(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    t.emit(node, Floor, [args[0]])


def write_onnx(node: Floor, out: OnnxWriter) -> None:
    form = out.layout(node)
    out.add("Floor", node, [out.read(node.inputs[0], form)], form=form)


def write_tflite(node: Floor, low: Lowering) -> None:
    low.writer.builtin("FLOOR", [low.numbers(node)], low.target(node))


PARTS = ("handler", "onnx", "lce")


@pytest.fixture
def without(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Registers every part of the operator but the one named by the parameter, for the time of one test."""
    left_out = getattr(request, "param", "")
    monkeypatch.setitem(tflite_writer._OPTIONS, "FLOOR", "")
    registered: list[dict[Any, Any]] = []
    parts: dict[str, tuple[dict[Any, Any], Callable[[], object]]] = {
        "handler": (HANDLERS, lambda: handles(OPERATOR)(handle)),
        "onnx": (FORMS._forms, lambda: FORMS.register(Floor)(write_onnx)),
        "lce": (FLOAT_FORMS._forms, lambda: FLOAT_FORMS.register(Floor)(write_tflite)),
    }
    for part, (table, register) in parts.items():
        if part != left_out:
            register()
            registered.append(table)
    yield left_out
    for table in registered:
        table.pop(OPERATOR, None)
        table.pop(Floor, None)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = BinaryConv2d(4, 4, 3, bias=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.floor(self.conv(x) * 0.3).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("target", list(TARGETS))
def test_an_operator_is_added_by_a_node_a_handler_and_a_form(target: str, without: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    writer = TARGETS.load(target)
    path = tmp_path / f"net{writer.suffix}"
    images = torch.randn(64, 4, 6, 6)
    report = bnnedge.export(model, images[:2], path, target, verify_images=images.numpy())
    for runtime in map(RUNTIMES.load, writer.runtimes):
        if runtime.unavailable() is None:
            found = runtime.open(path.read_bytes()).run(images.numpy())
            with torch.no_grad():
                expected = model(images.sign() + (images == 0)).numpy()
            # Means of 16 whole numbers below 12 in size and a dense layer of 4: far fewer than 64 roundings of 2^-24.
            np.testing.assert_allclose(found, expected, rtol=0, atol=64 * 2.0**-24 * 12)
    assert report.verification is not None or report.not_verified


MESSAGES = {
    "handler": r"operator aten\.floor\.default has no counterpart in the export graph",
    "onnx": r"^floor: the target onnx has no form for Floor",
    "lce": r"^floor: the target lce has no form for Floor",
}


@pytest.mark.parametrize("without", PARTS, indirect=True)
def test_a_part_that_is_left_out_is_named(without: str, tmp_path: Path) -> None:
    target = without if without in TARGETS else "onnx"
    path = tmp_path / f"net{TARGETS.load(target).suffix}"
    with pytest.raises(ExportError, match=MESSAGES[without]):
        bnnedge.export(Net().eval(), torch.randn(2, 4, 6, 6), path, target)
    assert not path.exists()


@pytest.mark.parametrize("fact", ["weights", "macs", "summands", "reads", "writes"])
def test_a_node_that_leaves_a_fact_out_cannot_be_made(fact: str) -> None:
    facts = {name: getattr(g.Add, name) for name in ("weights", "macs", "summands", "reads", "writes") if name != fact}
    unfinished: type[g.Node] = dataclass(kw_only=True)(type("Unfinished", (g.Node,), facts))
    with pytest.raises(TypeError, match=rf"Unfinished .*\b{fact}\b"):
        unfinished(name="n", inputs=("x",), output="y")


def test_a_subclass_needs_a_form_of_its_own(without: str) -> None:
    """A kind of convolution that a target does not know is never written as a plain one."""

    @dataclass(kw_only=True)
    class Transposed(g.Conv2d):
        pass

    node = Transposed(name="up", inputs=("x",), output="y", weight=np.ones((1, 1, 1, 1)), bias=np.zeros(1))
    tensors = {name: g.TensorSpec((1, 1, 2, 2)) for name in "xy"}
    for name in TARGETS:
        with pytest.raises(ExportError, match=f"^up: the target {name} has no form for Transposed"):
            TARGETS.load(name)().write(g.Graph(("x",), ("y",), [node], tensors))


def test_nothing_is_registered_twice(without: str) -> None:
    with pytest.raises(ValueError, match="two forms of Floor are registered for the target onnx"):
        FORMS.register(Floor)(write_onnx)
    with pytest.raises(ValueError, match=r"two handlers are registered for aten\.floor\.default"):
        handles(OPERATOR)(handle)
