"""What is wrong with a file, an option or the installation is refused in one sentence that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnnedge.errors import ConfigError, MissingDependencyError
from bnnedge.export.runtimes.litert import LiteRt
from bnnedge.export.targets.tflite.reader import parse_model
from bnnedge.export.targets.tflite.writer import schema, serialize
from bnnedge.kernels import plugins
from bnnedge.kernels.plugins import litert_delegate
from tests.kernels.litert.chain import chain
from tests.kernels.litert.convolution import Case, Parameters, conv_model, conv_options
from tests.kernels.litert.running import interpreter, needs_delegate, unavailable
from tests.kernels.litert.writing import VALID, flexbuffer, model_of, with_options

pytestmark = needs_delegate


def test_options_of_the_delegate() -> None:
    with pytest.raises(ConfigError, match="threads must be a number from 1 to 256, found '0'"):
        litert_delegate(0)
    with pytest.raises(ConfigError, match=r"kernel: 'abacus' does not run on this CPU; known: .*reference"):
        litert_delegate(kernel="abacus")
    from ai_edge_litert.interpreter import load_delegate

    with pytest.raises(ValueError, match="unknown option 'speed'; known: threads, kernel"):
        load_delegate(str(plugins.library_path(plugins.LITERT_DELEGATE)), {"speed": "high"})


def test_a_library_that_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "LITERT_DELEGATE", "bnnedge_no_such_plugin")
    with pytest.raises(MissingDependencyError, match=r"plug-in bnnedge_no_such_plugin was not built: install a C"):
        litert_delegate()
    with pytest.raises(MissingDependencyError, match=r"stock LiteRT does not know LceBMaxPool2d, LceBconv2d, .*, and "):
        LiteRt.open(chain()[0])
    assert "was not built" in (plugins.unavailable("bnnedge_no_such_plugin") or "")


def test_a_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"no library")
    monkeypatch.setattr(plugins, "library_path", lambda name: tmp_path / "broken.so")
    with pytest.raises(MissingDependencyError, match="bnnedge_litert_delegate cannot be loaded, reinstall bnnedge"):
        litert_delegate()


GOOD = Case(channels=64, outputs=5, size=(5, 6))
WRONG_OPTIONS: list[tuple[dict[str, int | None], str]] = [
    ({"channels_in": 63}, "the filter has bits beyond its 63 channels"),
    ({"stride_height": 0}, "stride_height must be an integer in"),
    ({"stride_width": -1}, "stride_width must be an integer in"),
    ({"stride_width": 2**40}, "stride_width must be an integer in"),
    ({"dilation_height_factor": 0}, "dilation_height_factor"),
    ({"dilation_width_factor": 2**31 - 1}, "reaches too far"),
    ({"dilation_height_factor": 2**31 - 1, "padding": VALID}, "filter does not fit"),
    ({"padding": 2}, "padding must be"),
    ({"pad_values": 2}, "pad_values must be"),
    ({"channels_in": 0}, "channels_in must be"),
    ({"channels_in": 65}, "groups|words"),
    ({"channels_in": 32}, "groups|words"),
    ({"channels_in": 2**31 - 1}, "groups|words"),
    ({"channels_in": None}, "channels_in must be .* found none"),
    ({"fused_activation_function": None}, "fused_activation_function must be .* found none"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_OPTIONS, ids=lambda value: str(value)[:50])
def test_wrong_options_of_a_convolution(changes: dict[str, int | None], message: str) -> None:
    merged: dict[str, int | None] = {**conv_options(GOOD), **changes}
    blob = flexbuffer(**{key: value for key, value in merged.items() if value is not None})
    data = with_options(conv_model(GOOD, Parameters.of(GOOD)), blob)
    with pytest.raises(RuntimeError, match=message) as failure:
        interpreter(data).allocate_tensors()
    assert "bnnedge: LceBconv2d" in str(failure.value)


def wrong_inputs() -> list[tuple[str, bytes, str]]:
    """(what, file, message): a good convolution with one thing changed."""
    good = conv_model(GOOD, Parameters.of(GOOD))

    def changed(change: Any) -> bytes:
        raw = parse_model(good).raw
        change(raw.subgraphs[0], raw.subgraphs[0].operators[0])
        return serialize(raw)

    def inputs(*values: int) -> bytes:
        return changed(lambda graph, op: setattr(op, "inputs", list(values)))

    def tensor(index: int, **fields: Any) -> bytes:
        return changed(lambda graph, op: vars(graph.tensors[index]).update(fields))

    def constant_output(_: Any, op: Any) -> None:
        op.inputs, op.outputs = [source, weight, gamma, gamma, -1], [beta]

    def uninitialised(index: int) -> bytes:
        return tensor(index, buffer=0)

    types = schema().TensorType
    source, weight, gamma, beta, target = range(5)
    return [
        ("4 inputs", inputs(source, weight, gamma, beta), "needs 5 inputs, found 4"),
        ("no inputs", inputs(), "needs 5 inputs, found 0"),
        ("no activations", inputs(-1, weight, gamma, beta, -1), "input and filter must be there"),
        ("no filter", inputs(source, -1, gamma, beta, -1), "input and filter must be there"),
        ("no multiplier", inputs(source, weight, -1, beta, -1), "needs a multiplier"),
        ("no bias", inputs(source, weight, gamma, -1, -1), "needs a bias"),
        ("float filter", inputs(source, gamma, gamma, beta, -1), "filter must be int32, found float32"),
        ("filter as bias", inputs(source, weight, gamma, weight, -1), "bias must be float32, found int32"),
        ("no constant filter", uninitialised(weight), "filter must be a constant"),
        ("no constant bias", uninitialised(beta), "bias must be a constant"),
        ("float activations", tensor(source, type=types.FLOAT32), "input must be int32, found float32"),
        ("no threshold", tensor(target, type=types.INT32), "needs a threshold"),
        ("int16 output", tensor(target, type=types.INT16), r"output must be float32, int8 or int32 \(bits\)"),
        ("int8 without scale", tensor(target, type=types.INT8), "int8 output needs a finite scale"),
        ("rank 3", tensor(source, shape=[5, 6, 2]), r"input must be \[N, H, W, words\], found \[5, 6, 2\]"),
        ("rank 3 filter", tensor(weight, shape=[15, 3, 2]), r"filter must be \[O, kh, kw, words\]"),
        ("3 words", tensor(source, shape=[1, 5, 6, 3]), r"64 channels take 2 words, found input \[1, 5, 6, 3\]"),
        ("other outputs", tensor(weight, shape=[3, 3, 5, 2]), r"multiplier must be \[3\], found \[5\]"),
        ("groups", tensor(weight, shape=[10, 3, 3, 1]), "10|do not divide|must be"),
        ("no pixels", tensor(source, shape=[1, 0, 6, 2]), "empty|fit"),
        ("constant output", changed(constant_output), "'constant2' is a constant and cannot be written"),
    ]


WRONG_INPUTS = {what: (data, message) for what, data, message in (wrong_inputs() if unavailable is None else [])}


@pytest.mark.parametrize("what", WRONG_INPUTS)
def test_wrong_inputs_of_a_convolution(what: str) -> None:
    data, message = WRONG_INPUTS[what]
    with pytest.raises(RuntimeError, match=message):
        interpreter(data).allocate_tensors()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filter_height": 0}, "filter_height must be"),
        ({"stride_width": 0}, "stride_width must be"),
        ({"stride_height": None}, "stride_height must be .* found none"),
        ({"padding": 7}, "padding must be"),
        ({"filter_width": 9}, "window does not fit"),
    ],
)
def test_wrong_options_of_a_pool(changes: dict[str, int | None], message: str) -> None:
    words = np.zeros((1, 4, 4, 1), np.int32)
    good: dict[str, int | None] = {"filter_height": 2, "filter_width": 2, "stride_height": 2, "stride_width": 2}
    merged = {**good, "padding": VALID, **changes}
    blob = flexbuffer(**{key: value for key, value in merged.items() if value is not None})
    with pytest.raises(RuntimeError, match=f"LceBMaxPool2d.*{message}"):
        interpreter(model_of("LceBMaxPool2d", blob, words, words[:, :2, :2])).allocate_tensors()


@pytest.mark.parametrize("blob", [None, b"", b"\0", b"\x24\x01", bytes(64), b"\xff" * 64, b"no flexbuffer at all"])
def test_options_that_are_no_map(blob: bytes | None) -> None:
    data = with_options(conv_model(GOOD, Parameters.of(GOOD)), blob)
    with pytest.raises(RuntimeError, match=r"channels_in must be an integer .* found none"):
        interpreter(data).allocate_tensors()
