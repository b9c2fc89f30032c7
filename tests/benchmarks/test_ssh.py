"""``--device ssh://..``, mostly through a stand-in for ``ssh`` that logs in to this machine without asking."""

from __future__ import annotations

import dataclasses
import getpass
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnnedge.benchmarks.bench import bench, open_device
from bnnedge.benchmarks.devices.device import BenchmarkInput, BenchmarkSettings, ModelFile
from bnnedge.benchmarks.devices.remote.protocol import (
    PROTOCOL,
    MeasureRequest,
    Message,
    encode,
    receive,
)
from bnnedge.benchmarks.devices.ssh import Address
from bnnedge.benchmarks.rows import BenchmarkRow, read_rows
from bnnedge.cli import main
from bnnedge.data.dataset import Dataset
from bnnedge.errors import BenchmarkError, MissingDependencyError
from bnnedge.export.evaluate import evaluate_file
from bnnedge.export.graph import Graph
from bnnedge.export.targets.onnx.target import OnnxTarget
from bnnedge.export.targets.tflite.target import LceTarget
from tests.conftest import PATH

Classifier = tuple[Graph, NDArray[np.float64]]
HERE = f"ssh://user@box:2222{sys.executable}"
"""The device whose Python is this one."""
QUICK: dict[str, Any] = {"warmup": 1, "runs": 5}


@pytest.fixture
def onnx_file(tmp_path: Path, digits_classifier: Classifier) -> Path:
    path = tmp_path / "digits.onnx"
    path.write_bytes(OnnxTarget().write(digits_classifier[0]))
    return path


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """File with what the stand-in for ``ssh`` was called with, in front of the command; that runs in a shell here."""
    said = tmp_path / "arguments"
    stand_in(
        monkeypatch, tmp_path, f'echo "$@" > {said}; for last; do :; done; echo "Welcome to {{box}}"; eval "$last"'
    )
    return said


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Let ``script`` be ``ssh``."""
    program = folder / "a login"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("BNNEDGE_SSH", shlex.join([str(program), "-q"]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p or os.getcwd() for p in sys.path))


def without_times(row: BenchmarkRow) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(row.to_json())
    for name in ("p20_ms", "p50_ms", "p80_ms", "images_per_s", "peak_memory_bytes", "started_at", "environment"):
        del record[name]
    return record


@pytest.mark.parametrize(
    ("text", "login", "port", "python"),
    [
        ("pi@raspberry.local", "pi@raspberry.local", None, None),
        ("10.0.0.7:22", "10.0.0.7", 22, None),
        ("a_b-c@my_host-1:65535/home/pi/v env/bin/python", "a_b-c@my_host-1", 65535, "/home/pi/v env/bin/python"),
        ("pi@[fe80::1]:2222/python", "pi@fe80::1", 2222, "/python"),
    ],
)
def test_addresses(text: str, login: str, port: int | None, python: str | None) -> None:
    address = Address.parse(text)
    assert (address.login, address.port, address.python) == (login, port, python)
    assert str(address) == "ssh://" + text.partition("/")[0]


@pytest.mark.parametrize(
    "text", ["", "pi@", "@host", "a@b@c", "host:", "host:0", "host:65536", "host:x", "-oProxyCommand=x", "-x@h", "a b"]
)
def test_addresses_that_have_no_meaning(text: str) -> None:
    with pytest.raises(BenchmarkError, match=r"expected device ssh://\[USER@\]HOST\[:PORT\]\[/PATH/TO/PYTHON\], found"):
        open_device(f"ssh://{text}")


def test_messages() -> None:
    message = Message({"a": [1, "\n"]}, [b"\n{}", b"", b"\xff"])
    sent = b"".join(encode(message))
    stream = io.BytesIO(sent + sent)
    for _ in range(2):
        received = receive(stream, most_payload_bytes=4)
        assert received is not None
        assert (received.header, list(received.payloads)) == (message.header, message.payloads)
    assert receive(stream) is None
    with pytest.raises(EOFError):
        receive(io.BytesIO(sent[:-1]), most_payload_bytes=4)
    with pytest.raises(BenchmarkError, match="expected a message with at most 3 bytes, found 4"):
        receive(io.BytesIO(sent), most_payload_bytes=3)


@pytest.mark.parametrize("dtype", ["uint8", "float32", ">f4", "int64"])
def test_a_request_arrives_as_it_was_sent(dtype: str, digits: Dataset) -> None:
    images = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).astype(dtype)
    masks = np.arange(2 * 4 * 5).reshape(2, 4, 5)[:, ::-1]
    files = [ModelFile("a.onnx", b"a", "onnxruntime", {"input_shape": [3, 4, 5]}, trained=False)]
    for targets, info in ((masks, digits.info), (None, None)):
        data = BenchmarkInput("a test", images, targets, info)
        sent = MeasureRequest(files, data, BenchmarkSettings(threads=3))
        arrived = MeasureRequest.from_message(receive_one(b"".join(encode(sent.to_message()))))
        assert (arrived.files, arrived.settings) == (files, sent.settings)
        assert (arrived.data.name, arrived.data.info) == ("a test", info)
        assert arrived.data.images.dtype == np.dtype(dtype).newbyteorder("<")
        assert np.array_equal(arrived.data.images, images)
        assert (arrived.data.targets is None) == (targets is None)
        if targets is not None:
            assert arrived.data.targets is not None and np.array_equal(arrived.data.targets, targets)


def receive_one(sent: bytes) -> Message:
    message = receive(io.BytesIO(sent), most_payload_bytes=2**20)
    assert message is not None
    return message


def test_a_device_normalises_by_the_record_of_the_file(
    login: Path, tmp_path: Path, onnx_file: Path, digits: Dataset, digits_classifier: Classifier
) -> None:
    """A changed mean costs as much accuracy on a device as here and in ``evaluate FILE``, to the image."""
    graph, record = digits_classifier[0], digits.info.preprocessing
    shifted = dataclasses.replace(record, mean=(record.mean[0] + 1,)).to_dict()
    other = tmp_path / "shifted.onnx"
    other.write_bytes(
        OnnxTarget().write(dataclasses.replace(graph, metadata={**graph.metadata, "preprocessing": shifted}))
    )
    files = [onnx_file, other]
    there = bench(files, runtime="onnxruntime", device=HERE, **QUICK)
    here = bench(files, runtime="onnxruntime", **QUICK)
    found = [evaluate_file(path, "test", "onnxruntime") for path in files]
    assert [row.scores for row in there] == [row.scores for row in here] == [file.scores for file in found]
    assert there[1].scores["top1"] < there[0].scores["top1"] - 0.1


def test_rows_are_those_of_the_machine_itself(
    login: Path, tmp_path: Path, onnx_file: Path, digits_classifier: Classifier
) -> None:
    tflite = tmp_path / "digits.tflite"
    tflite.write_bytes(LceTarget().write(digits_classifier[0]))
    rows = bench([onnx_file, tflite], device=HERE, threads=2, json_path=tmp_path / "rows.jsonl", **QUICK)
    expected = bench([onnx_file, tflite], threads=2, **QUICK)
    assert [without_times(row) for row in rows] == [
        {**without_times(row), "device": "ssh://user@box:2222"} for row in expected
    ]
    assert rows[0].scores["top1"] > 0.9
    assert read_rows(tmp_path / "rows.jsonl") == rows
    agent = f"exec {shlex.quote(sys.executable)} -m bnnedge.benchmarks.devices.remote.agent"
    assert login.read_text() == f"-q -p 2222 -T -o ServerAliveInterval=15 user@box {agent}\n"


@pytest.mark.parametrize("has_own", [True, False])
def test_the_python_of_bnnedges_own_environment_comes_first(
    has_own: bool, login: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = tmp_path / ".bnnedge" / "bin" / "python", tmp_path / "programs" / "python3"
    for python in (own, other) if has_own else (other,):
        python.parent.mkdir(parents=True)
        python.write_text('#!/bin/sh\necho "$0" "$@" >&2\nexit 1\n')
        python.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{other.parent}:{os.environ['PATH']}")
    said = f"{own if has_own else other} -m bnnedge.benchmarks.devices.remote.agent"
    with pytest.raises(MissingDependencyError, match=rf"^python3 on ssh://box did not start .* \({said}\)$"):
        open_device("ssh://box")


def test_one_connection_serves_all_questions(login: Path) -> None:
    with open_device(HERE) as device:
        login.unlink()
        assert device.unavailable("onnxruntime") is None
        with pytest.raises(BenchmarkError, match="on ssh://user@box:2222: unknown runtime 'tpu'"):
            device.unavailable("tpu")
        missing = ModelFile("net.onnx", b"junk", "onnxruntime", {"input_shape": [1, 2]})
        noise = BenchmarkInput("noise", np.zeros((1, 1, 2), np.float32))
        with pytest.raises(BenchmarkError, match=r"on ssh://user@box:2222: net\.onnx: "):
            device.measure([missing], noise, BenchmarkSettings())
    assert not login.exists()


def hello(protocol: int) -> str:
    said = json.dumps({"bnnedge_agent": protocol, "version": "9.9", "payloads": []})
    return f"echo {shlex.quote(said)}"


HELLO = hello(PROTOCOL)
FAULTS = {
    "refused": (
        "echo 'ssh: connect to host box port 2222: Connection refused' >&2; exit 255",
        r"ssh://user@box:2222 cannot be reached \(ssh: connect .*refused\); try: '.*/a login' -q -p 2222 user@box",
    ),
    "no Python": (
        "echo 'sh: 1: exec: python3: not found' >&2; exit 127",
        r"cannot be started \(sh: 1: exec: python3: not found\); name another: ssh://",
    ),
    "no bnnedge": (
        "echo 'python3: No module named bnnedge' >&2; exit 1",
        r"lacks bnnedge 0.* \(python3: No module named bnnedge\); there: python3 -m venv .* bnnedge-0\..*\.whl",
    ),
    "nothing": ("exit 3", r"did not start bnnedge's agent \(exit code 3\)"),
    "a flood": ("yes welcome", "did not start bnnedge's agent"),
    "another version": (
        hello(1),
        f"has bnnedge 9.9 with protocol 1, this machine 0.* with protocol {PROTOCOL}; install the same version on both",
    ),
    "a broken connection": (
        f"{HELLO}; read line; echo 'Connection reset' >&2; exit 255",
        "the connection to ssh://user@box:2222 ended before the answer came: Connection reset",
    ),
    "half an answer": (
        f"{hello(PROTOCOL)}; read line; printf '{{\"reason\"'; exit 255",
        "ended before the answer came",
    ),
    "something else": (
        f"{hello(PROTOCOL)}; read line; echo '[]'",
        "does not answer as bnnedge's agent does: expected a mess",
    ),
    "no JSON": (f"{HELLO}; read line; echo Hello", "does not answer as bnnedge's agent does: "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, onnx_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, message = FAULTS[fault]
    stand_in(monkeypatch, tmp_path, script)
    rows = tmp_path / "rows.jsonl"
    assert main(["bench", str(onnx_file), "--device", HERE, "--json", str(rows)]) == 2
    assert re.search(f"^error: .*{message}", capsys.readouterr().err.splitlines()[-1])
    assert not rows.exists()


def test_without_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNNEDGE_SSH", "/no/such/ssh")
    with pytest.raises(MissingDependencyError, match="/no/such/ssh cannot be started: No such file"):
        open_device(HERE)


def test_the_end_of_the_connection_ends_a_measurement(onnx_file: Path) -> None:
    file = ModelFile("net.onnx", onnx_file.read_bytes(), "onnxruntime", {"input_shape": [1, 8, 8]})
    noise = BenchmarkInput("noise", np.zeros((1, 1, 8, 8), np.float32))
    request = MeasureRequest([file], noise, BenchmarkSettings(runs=10**6)).to_message()
    agent = subprocess.Popen(
        [sys.executable, "-m", "bnnedge.benchmarks.devices.remote.agent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert agent.stdin and agent.stdout and agent.stderr
    greeting = receive(agent.stdout)
    assert greeting is not None and greeting.header["bnnedge_agent"] == PROTOCOL
    agent.stdin.writelines(encode(request))
    agent.stdin.flush()
    while (message := receive(agent.stdout)) is not None and message.header.get("progress", [""])[0] != "measuring":
        assert {"alive", "progress"} & set(message.header)
    agent.stdin.close()
    agent.stderr.close()
    agent.stdout.read()
    assert agent.wait(timeout=30) == 0


@pytest.fixture
def sshd(require: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a real server for this user on this machine."""
    require("ssh", "ssh-keygen", "sshd")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server, client = tmp_path / "sshd_config", tmp_path / "ssh_config"
    server.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\n"
        "PasswordAuthentication no\nUsePAM no\nStrictModes no\nPidFile none\n"
    )
    client.write_text(
        f"IdentityFile {tmp_path}/user\nIdentitiesOnly yes\nUserKnownHostsFile {tmp_path}/known\n"
        "StrictHostKeyChecking accept-new\n"
    )
    monkeypatch.setenv("BNNEDGE_SSH", f"ssh -F {shlex.quote(str(client))}")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where its part without rights lives
    program = shutil.which("sshd", path=PATH)
    with subprocess.Popen([str(program), "-D", "-f", server, "-E", tmp_path / "sshd.log"]) as process:
        try:
            for _ in range(100):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield f"ssh://{getpass.getuser()}@127.0.0.1:{port}"
        finally:
            process.terminate()


def test_through_a_real_server(sshd: str, onnx_file: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    options = ["--runs", "5", "--warmup", "1", "--json", str(rows)]
    assert main(["bench", str(onnx_file), "--device", f"{sshd}{sys.executable}", *options]) == 0
    (row,) = read_rows(rows)
    assert (row.device, row.file, row.input) == (sshd, str(onnx_file), "digits test")
    assert row.scores["top1"] > 0.9
    with pytest.raises(MissingDependencyError, match=r"^/no/python on ssh://.* cannot be started"):
        open_device(f"{sshd}/no/python")


def test_devices_need_no_torch() -> None:
    """Nor anything else that only training and the command line need."""
    absent = ["torch", "sklearn", "typer", "yaml", "matplotlib", "tensorboard", "triton"]
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "from bnnedge.benchmarks.devices.remote import agent\n"
        "from bnnedge.benchmarks.devices.local import LocalDevice\n"
        "from bnnedge.benchmarks.memory import _smallest_file\n"
        "for runtime in ('onnxruntime', 'onnxruntime+bnnedge', 'litert', 'litert+bnnedge'):\n"
        "    assert LocalDevice().unavailable(runtime) is None and _smallest_file(runtime)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
