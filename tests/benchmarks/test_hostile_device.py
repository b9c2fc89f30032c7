"""A device that is silent, slow, floods, answers nonsense or never closes ends in one line, within the limits."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bnnedge.benchmarks.bench import bench
from bnnedge.benchmarks.devices.remote import connection, remote_device
from bnnedge.benchmarks.devices.remote.protocol import PROTOCOL
from bnnedge.cli import main
from bnnedge.export.graph import Graph
from bnnedge.export.targets.onnx.target import OnnxTarget

HELLO = f"say({{'bnnedge_agent': {PROTOCOL}, 'version': '9.9'}}); "
NEXT = "sys.stdin.buffer.readline(); "
REASON = NEXT + "say({'reason': None}); "
READ = "request = json.loads(sys.stdin.buffer.readline()); [sys.stdin.buffer.read(n) for n in request['payloads']]; "
ROWS = HELLO + REASON + READ
FOREVER = "[time.sleep(0.01) for _ in iter(int, 1)]"
NONSENSE = "ssh://box does not answer as bnnedge's agent does: "

SEEN = {
    "says nothing for ever": (FOREVER, "did not start bnnedge's agent within 8 s; log in once by hand to see why"),
    "greets for ever": ("[(print('w', flush=True), time.sleep(0.1)) for _ in iter(int, 1)]", "did not start bnnedge's"),
    "greets with brackets": ("print('[' * 60_000, flush=True)", "did not start bnnedge's agent"),
    "says hello and no more": (HELLO + FOREVER, "ssh://box gave no sign of life for 3 s"),
    "is alive for ever": (
        HELLO + "[(say({'alive': True}), time.sleep(0.1)) for _ in iter(int, 1)]",
        "ssh://box gave no answer within ",
    ),
    "sends a long line": (
        HELLO + "[sys.stdout.buffer.write(b'1,' * 2**19) for _ in iter(int, 1)]",
        NONSENSE + "expected a message of at most 16,777,216 bytes, found more",
    ),
    "sends a deep message": (HELLO + NEXT + "print('[' * 200_000, flush=True)", NONSENSE),
    "announces payloads": (
        HELLO + 'sys.stdin.buffer.readline(); print(\'{"payloads": [1000000], "reason": null}\', flush=True)',
        NONSENSE + "expected a message with at most 0 bytes, found 1,000,000",
    ),
    "announces a negative payload": (
        HELLO + NEXT + "print('{\"payloads\": [-1]}', flush=True)",
        NONSENSE,
    ),
    "gives no reason": (HELLO + "say({})", NONSENSE),
    "reports no progress": (ROWS + "say({'progress': ['x', 'much', None]}); " + FOREVER, NONSENSE),
    "sends no rows": (ROWS + "say({'rows': []})", NONSENSE + "expected one row for each file as it was sent, found 0"),
    "sends null": (ROWS + "say({'rows': None})", NONSENSE),
    "sends a number": (ROWS + "say({'rows': ['5']})", NONSENSE),
    "ignores SIGTERM": (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); " + HELLO + "print('garbage', flush=True); " + FOREVER,
        NONSENSE,
    ),
    "sends escape codes": (
        HELLO + r"say({'error': '\x1b[2J\x1b]0;t\x07'}); " + FOREVER,
        re.escape(r"on ssh://box: \x1b[2J\x1b]0;t\x07"),
    ),
    "has an odd version": (
        r"say({'bnnedge_agent': 1, 'version': '\x1b[2J' * 1000}); " + FOREVER,
        re.escape(r"ssh://box has bnnedge \x1b[2J"),
    ),
}


@pytest.fixture
def onnx_file(tmp_path: Path, digits_classifier: tuple[Graph, Any]) -> Path:
    path = tmp_path / "digits.onnx"
    path.write_bytes(OnnxTarget().write(digits_classifier[0]))
    return path


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, seconds in (
        (remote_device, "_GREETING_S", 8),
        (remote_device, "_ANSWER_S", 3),
        (remote_device, "_LONGEST_S", 4),
        (connection, "_STALLED_S", 3),
        (connection, "_PATIENCE_S", 0.5),
    ):
        monkeypatch.setattr(module, name, seconds)


def pretend(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> None:
    """Let the device be a program of ``body``."""
    program = folder / "device.py"
    say = "def say(said): print(json.dumps({'payloads': [], **said}), flush=True)\n"
    program.write_text(f"import json, signal, sys, time\n{say}{body}\n", encoding="utf-8")
    monkeypatch.setenv("BNNEDGE_SSH", shlex.join([sys.executable, "-S", str(program)]))


@pytest.mark.parametrize("what", SEEN)
def test_a_device_that(
    what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, onnx_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body, message = SEEN[what]
    pretend(monkeypatch, tmp_path, body)
    began = time.monotonic()
    options = ["--runtime", "onnxruntime", "--data", "random", "--json", str(tmp_path / "rows.jsonl")]
    assert main(["bench", str(onnx_file), "--device", "ssh://box", *options]) == 2
    assert time.monotonic() - began < 60
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"^error: .*{message}", line) and line.isprintable()
    assert len(line) < 1500
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_device_that_takes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, onnx_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pictures of the request are more than a pipe holds."""
    pretend(monkeypatch, tmp_path, HELLO + REASON + FOREVER)
    assert main(["bench", str(onnx_file), "--device", "ssh://box", "--runtime", "onnxruntime"]) == 2
    assert capsys.readouterr().err == "error: ssh://box took nothing for 3 s\n"


@pytest.mark.parametrize(
    "change", [{"file": "other.onnx"}, {"runtime": "litert"}, {"file_bytes": 1}, {"threads": 7}, {"runs": 3}, "twice"]
)
def test_rows_of_other_files(
    change: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, onnx_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"runtime": "onnxruntime", "warmup": 0, "runs": 1, "data": "random"}
    (row,) = bench([onnx_file], **settings)
    stored = json.loads(row.to_json())
    rows = [stored, stored] if change == "twice" else [{**stored, **change}]
    pretend(monkeypatch, tmp_path, ROWS + f"say({{'rows': {[json.dumps(row) for row in rows]!r}}})")
    command = ["--runtime", "onnxruntime", "--warmup", "0", "--runs", "1", "--data", "random", "--device", "ssh://box"]
    assert main(["bench", str(onnx_file), *command]) == 2
    assert "expected one row for each file as it was sent" in capsys.readouterr().err

    pretend(monkeypatch, tmp_path, ROWS + f"say({{'rows': {[json.dumps(stored)]!r}}})")
    assert main(["bench", str(onnx_file), *command]) == 0


def test_the_agent_ends_with_its_host() -> None:
    """An agent whose answers nobody takes ends as well as one whose input ends; ``test_ssh.py`` has the second."""
    command = [sys.executable, "-m", "bnnedge.benchmarks.devices.remote.agent"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as agent:
        assert agent.stdin and agent.stdout
        agent.stdout.readline()
        agent.stdout.close()
        agent.stdin.write(b'{"unavailable": "onnxruntime", "payloads": []}\n')
        agent.stdin.flush()
        assert agent.wait(timeout=30) == 1
