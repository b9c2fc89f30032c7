"""A file on which a runtime crashes, hangs or takes all memory is one line, and so is one that lies about itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnnedge.cli import main
from bnnedge.errors import ConfigError, DataError, ExportError
from bnnedge.export.graph import Graph, Linear, TensorSpec
from bnnedge.export.runtimes.child import Child, Limits, python_command
from bnnedge.export.runtimes.isolated import IsolatedFile
from bnnedge.export.targets.onnx.target import OnnxTarget
from bnnedge.export.targets.tflite.target import LceTarget
from tests.export.digests import without_digest

LIMITS = Limits(memory_bytes=2**30, load_s=1, run_s=1)


def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, **options: Any) -> Child:
    """A child that runs ``body`` at its first request, which it sees as ``request`` of its ``parent``."""
    code = (
        "import ctypes, os, signal, sys, time\nfrom bnnedge import errors\nfrom bnnedge.export.runtimes import child\n"
    )
    code += "def main():\n    parent = child.Parent()\n    for request in parent.requests():\n"
    code += "        with parent.answering():\n" + textwrap.indent(textwrap.dedent(body), " " * 12) + "\n"
    (tmp_path / "childs_work.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return Child("childs_work", LIMITS, "net.tflite: litert running it", **options)


ENDINGS = {
    "crashes": (
        "os.kill(os.getpid(), signal.SIGSEGV)",
        r"crashed with signal 11 \(Segmentation fault\); at most 1.0 GiB",
    ),
    "aborts": ("os.abort()", "crashed with signal 6"),
    "hangs in C": ("with child.within(0.2): ctypes.CDLL(None).pause()", "gave no result within 1 s"),
    "loops": ("with child.within(0.2): [0 for _ in iter(int, 1)]", "gave no result within 1 s"),
    "is killed": (
        "os.kill(os.getpid(), signal.SIGKILL)",
        r"was killed; it may have taken too much memory \(at most 1.0",
    ),
    "exits": ("os._exit(3)", "ended with exit code 3"),
    "exits in the middle": ("os.write(parent._answers.fileno(), bytes(9)); os._exit(0)", "ended with exit code 0"),
    "sends nonsense": ("os.write(parent._answers.fileno(), b'x' * 99)", "sends nonsense"),
    "needs memory": ("child.limit_memory(2**29); bytearray(2**30)", r"the memory is not enough \(at most 1.0 GiB"),
    "fails": ("raise IndexError('list index\\n out of range')", "IndexError: list index out of range"),
    "sends text": (
        "parent.send({'a': 1}, {'x': __import__('numpy').array(['text'])})",
        "expected an output of numbers",
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="limits and signals are Linux's")
@pytest.mark.parametrize("what", ENDINGS)
def test_a_child_that(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body, message = ENDINGS[what]
    with start(tmp_path, monkeypatch, body) as child, pytest.raises(ExportError, match=message) as caught:
        child.ask("go")
    assert str(caught.value).isprintable()
    if what != "sends text":
        assert str(caught.value).startswith("net.tflite: litert running it: ")


def test_a_child_answers_with_errors_progress_and_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
        import numpy as np
        if isinstance(request, str):
            raise errors.ConfigError("a setting\x1b[2J is wrong")
        print("this goes nowhere")
        parent.report("doing", 1, 2)
        parent.say("net.tflite: litert running it again")
        parent.send({"a": "b"}, {"x": request, "empty": np.zeros((0, 3))})
    """
    told: list[tuple[str, int, int]] = []
    with start(tmp_path, monkeypatch, body, progress=lambda *said: told.append(said)) as child:
        with pytest.raises(ConfigError, match=r"a setting\\x1b\[2J is wrong"):
            child.ask("error")
        values = np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1]
        answer, arrays = child.ask(values)
        assert answer == {"a": "b"} and told == [("doing", 1, 2)]
        assert child.doing == "net.tflite: litert running it again"
    np.testing.assert_array_equal(arrays["x"], values)
    assert arrays["empty"].shape == (0, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="this is Linux's")
def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    script = """
        import os, sys, time
        from bnnedge.export.runtimes.child import Child, Limits
        child = Child("bnnedge.export.runtimes.isolated", Limits(2**30, 60, 60), "file")
        child.send(("file", b"", Limits(2**30, 60, 60)))
        print(child._process.pid, flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        while b"isolated" not in Path(f"/proc/{child}/cmdline").read_bytes():
            time.sleep(0.01)
        time.sleep(1)  # until it has asked to end with its parent
        parent.send_signal(signal.SIGKILL)
    for _ in range(200):
        if not Path(f"/proc/{child}").exists() or "Z (zombie)" in Path(f"/proc/{child}/status").read_text():
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child goes on")


def test_the_working_folder_is_no_place_for_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file called like a module, in a folder of anybody's, is not imported."""
    (tmp_path / "json.py").write_text("open('ran', 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    command = python_command("bnnedge.export.runtimes.isolated")
    assert subprocess.run(command, input=b"", cwd=tmp_path, capture_output=True).returncode != 0  # no request came
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("target", "runtime"), [("onnx", "onnxruntime"), ("tflite", "litert")])
def test_outputs_are_those_of_the_runtime_itself(target: str, runtime: str) -> None:
    data = (OnnxTarget() if target == "onnx" else LceTarget()).write(network())
    inputs = np.arange(6, dtype=np.float32).reshape(2, 3)
    with IsolatedFile(f"net.{target}", data, inputs.nbytes) as file:
        assert [row.name for row in file.describe()] == ["fc"]
        session = file.load(runtime)
        (found,) = session.run_all(inputs).values()
        np.testing.assert_array_equal(found, inputs @ network().nodes[0].weight.T + 1)  # type: ignore[attr-defined]
        with pytest.raises((ExportError, DataError), match=r"3"):
            session.run_all(np.zeros((2, 4), np.float32))


def network() -> Graph:
    weight = np.array([[1.0, 2, 3], [-4, 5, 6]])
    node = Linear(name="fc", inputs=("x",), output="y", weight=weight, bias=np.ones(2))
    tensors = {"x": TensorSpec((1, 3)), "y": TensorSpec((1, 2))}
    return Graph(("x",), ("y",), [node], tensors, {"input_shape": [3]})


def no_outputs(model: Any) -> None:
    del model.graph.output[:]


def no_operators(model: Any) -> None:
    del model.graph.node[:]


def output_is_input(model: Any) -> None:
    model.graph.output[0].name = model.graph.input[0].name


def a_second_input(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def an_output_that_is_a_number(model: Any) -> None:
    model.graph.node.append(helper.make_node("ReduceSum", [model.graph.output[0].name], ["sum"], keepdims=0))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("sum", TensorProto.FLOAT, []))


def an_output_that_is_a_sequence(model: Any) -> None:
    model.graph.node.append(helper.make_node("SequenceConstruct", [model.graph.output[0].name], ["all"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("all", TensorProto.FLOAT, None))


def values_beside_the_file(model: Any) -> None:
    constant = model.graph.initializer[0]
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="/etc/passwd")


def a_huge_constant(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [1 << 40]


def a_loop(model: Any) -> None:
    body = helper.make_graph([helper.make_node("Identity", ["c"], ["d"])], "b", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["z"], body=body))


def an_output_that_is_not_finite(model: Any) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "nan"))
    model.graph.node.append(helper.make_node("Add", [model.graph.output[0].name, "nan"], ["sum"]))
    model.graph.output[0].name = "sum"


@pytest.mark.parametrize(
    "damage",
    [
        no_outputs,
        no_operators,
        output_is_input,
        a_second_input,
        an_output_that_is_a_number,
        an_output_that_is_a_sequence,
        values_beside_the_file,
        a_huge_constant,
        a_loop,
        an_output_that_is_not_finite,
    ],
)
def test_structures_that_no_file_of_ours_has(
    damage: Callable[[Any], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load_from_string(without_digest(OnnxTarget().write(network())))
    damage(model)
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    commands: list[tuple[str, ...]] = [("bench", "--runs", "1", "--warmup", "0", "--data", "random")]
    commands += [] if damage is an_output_that_is_not_finite else [("summary",)]
    if damage is a_second_input:
        commands = commands[:1]  # a network of two inputs has a table
    for command in commands:
        assert main([*command, str(path)]) == 2, command
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and "net.onnx" in line, line


@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_flipped_bits_are_noticed(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every bit of the weights; others, as of the name of the digest itself, may leave the result as it is."""
    data = (OnnxTarget() if target == "onnx" else LceTarget()).write(network())
    path = tmp_path / f"net.{target}"
    path.write_bytes(data)
    assert main(["summary", str(path)]) == 0
    right = capsys.readouterr().out
    weights = data.index(network().nodes[0].weight.astype("<f4").tobytes())  # type: ignore[attr-defined]
    for i in range(60):
        changed = bytearray(data)
        changed[weights + i % 24 if i < 30 else (7919 * i) % len(data)] ^= 1 << i % 8
        path.write_bytes(changed)
        code = main(["summary", str(path)])
        said = capsys.readouterr()
        if code == 0 and i >= 30:
            assert said.out == right
        else:
            assert code == 2
            assert said.err.startswith("error: ") and said.err.count("\n") == 1 and path.name in said.err
