"""A machine that can be logged in to: files go there and rows come back, through one connection of the ``ssh`` command.

Keys, agents, jump hosts and the rest are as in the user's own ``~/.ssh/config``; ``BNNEDGE_SSH`` replaces the command.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from bnnedge import __version__
from bnnedge.benchmarks.devices import agent
from bnnedge.benchmarks.devices.agent import Message
from bnnedge.benchmarks.devices.device import BenchmarkInput, BenchmarkPlan, Device, ModelFile
from bnnedge.benchmarks.result import BenchmarkRow
from bnnedge.errors import BenchmarkError, MissingDependencyError

_EXPECTED = "ssh://[USER@]HOST[:PORT][/PATH/TO/PYTHON]"
_ADDRESS = re.compile(
    r"(?P<target>([A-Za-z0-9_][\w.-]*@)?([A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.]+\]))(:(?P<port>\d{1,5}))?(?P<python>/.+)?"
)
_VENV = "~/.bnnedge"
_NEEDS = "ai-edge-litert flatbuffers numpy onnx onnxruntime rich"
_GREETING_BYTES = 65536
"""What a login shell may say before the agent does."""
_CHUNK = 65536
_PATIENCE_S = 2
"""For what comes at once or not at all."""
_SSH_FAILED, _NO_SUCH_COMMAND = 255, 127  # exit codes of ssh itself and of the shell on the device


@dataclass(frozen=True)
class Address:
    """Where to log in and the Python to use there."""

    target: str
    """[USER@]HOST, as ``ssh`` takes it."""
    port: int | None = None
    python: str | None = None
    """Path there; None for that of ``~/.bnnedge`` if it is there, else ``python3``."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """What follows ``ssh://``. Raises ``BenchmarkError``."""
        found = _ADDRESS.fullmatch(text)
        port = int(found["port"]) if found and found["port"] else None
        if found is None or (port is not None and not 0 < port < 65536):
            raise BenchmarkError(f"expected device {_EXPECTED}, found ssh://{text}")
        return cls(found["target"].replace("[", "").replace("]", ""), port, found["python"])

    def __str__(self) -> str:
        host = self.target.rpartition("@")[2]
        target = self.target.replace(host, f"[{host}]") if ":" in host else self.target
        return f"ssh://{target}" + ("" if self.port is None else f":{self.port}")

    def login_command(self) -> list[str]:
        """The command that logs in there."""
        port = [] if self.port is None else ["-p", str(self.port)]
        return [*shlex.split(os.environ.get("BNNEDGE_SSH") or "ssh"), *port, self.target]

    def agent_command(self) -> list[str]:
        """The command that starts the agent there. It notices within a minute that the connection broke."""
        there = f"exec {shlex.quote(self.python or '')} -m {agent.__name__}"
        if self.python is None:
            script = f'p={_VENV}/bin/python; [ -x "$p" ] || p=python3; exec "$p" -m {agent.__name__}'
            there = f"exec sh -c {shlex.quote(script)}"  # whatever shell they log in to
        *command, target = self.login_command()
        return [*command, "-T", "-o", "ServerAliveInterval=15", target, there]


class SshDevice(Device):
    """``ssh://[USER@]HOST[:PORT][/PATH/TO/PYTHON]``: a Linux machine with bnnedge, measured through ssh."""

    name = "ssh"

    def __init__(self, address: str) -> None:
        self._address = Address.parse(address)
        command = self._address.agent_command()
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as error:
            raise MissingDependencyError(f"{command[0]} cannot be started: {error.strerror}; install it") from error
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._to: IO[bytes] = self._process.stdin
        self._from: IO[bytes] = self._process.stdout
        self._errors = _Errors(self._process.stderr)
        try:
            self._greet()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, address: str) -> SshDevice:
        return cls(address)

    def close(self) -> None:
        for stream in (self._to, self._from):
            try:
                stream.close()
            except OSError:  # what was left to be written finds nobody
                continue
        self._process.terminate()
        self._process.wait()

    def unavailable(self, runtime: str) -> str | None:
        reason: str | None = self._ask(Message({"unavailable": runtime})).header["reason"]
        return reason if reason is None else f"on {self._address}: {reason}"

    def measure(
        self, files: Sequence[ModelFile], data: BenchmarkInput, plan: BenchmarkPlan, console: Console | None = None
    ) -> list[BenchmarkRow]:
        console = console or Console(stderr=True)
        terminal = {"term": os.environ.get("TERM", "xterm"), "width": console.width} if console.is_terminal else None
        answer = self._ask(agent.measure_request(files, data, plan, terminal), console)
        return [replace(BenchmarkRow.from_json(row), device=str(self._address)) for row in answer.header["rows"]]

    def _greet(self) -> None:
        """Wait for the agent to speak."""
        read = 0
        while line := self._from.readline(_GREETING_BYTES):
            read += len(line)
            hello = _hello(line)
            if hello is not None:
                if hello[agent.HELLO] != agent.PROTOCOL:
                    raise MissingDependencyError(
                        f"{self._address} has bnnedge {hello.get('version')}, this machine {__version__}; install the "
                        "same version on both"
                    )
                self._errors.show()
                return
            if read > _GREETING_BYTES:
                break
        raise MissingDependencyError(self._why_no_agent())

    def _why_no_agent(self) -> str:
        where = f"{self._address.python or 'python3'} on {self._address}"
        code, said = self._end()
        if code == _SSH_FAILED:
            return f"{self._address} cannot be reached ({said}); try: {shlex.join(self._address.login_command())}"
        if code == _NO_SUCH_COMMAND:
            return f"{where} cannot be started ({said}); name another: {_EXPECTED}"
        if "No module named" in said:
            return (
                f"{where} lacks bnnedge {__version__} or what it needs ({said}); there: python3 -m venv {_VENV} && "
                f"{_VENV}/bin/pip install {_NEEDS} && {_VENV}/bin/pip install --no-deps bnnedge-{__version__}-*.whl"
            )
        return f"{where} did not start bnnedge's agent ({said})"

    def _ask(self, request: Message, console: Console | None = None) -> Message:
        try:
            self._send(request, console)
            answer = agent.receive(self._from)
        except (BrokenPipeError, EOFError):
            answer = None
        except ValueError as error:
            raise BenchmarkError(f"{self._address} does not answer as bnnedge's agent does: {error}") from error
        if answer is None:
            raise BenchmarkError(f"the connection to {self._address} ended before the answer came: {self._end()[1]}")
        if "error" in answer.header:
            raise BenchmarkError(f"on {self._address}: {answer.header['error']}")
        return answer

    def _send(self, message: Message, console: Console | None) -> None:
        parts = list(agent.encode(message))
        columns = (TextColumn("sending"), BarColumn(), DownloadColumn(), TextColumn("left"), TimeRemainingColumn())
        hidden = console is None or not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
            task = progress.add_task("", total=sum(map(len, parts)))
            for chunk in _chunks(parts):
                self._to.write(chunk)
                progress.advance(task, len(chunk))
            self._to.flush()

    def _end(self) -> tuple[int, str]:
        """Exit code of a connection that is over or not worth keeping, and the last that was said."""
        try:
            code = self._process.wait(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return code, self._errors.last_line() or f"exit code {code}"


class _Errors:
    """The standard error of a process, read all the time: kept at first, shown here from ``show`` on."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._kept = bytearray()
        self._shown = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while part := os.read(self._stream.fileno(), _CHUNK):
            with self._lock:
                self._kept += part
                del self._kept[:-_CHUNK]
                if self._shown:
                    _write_raw(part)

    def show(self) -> None:
        with self._lock:
            self._shown = True

    def last_line(self) -> str:
        self._thread.join(timeout=_PATIENCE_S)
        with self._lock:
            lines = [line.strip() for line in self._kept.decode(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")


def _write_raw(part: bytes) -> None:
    """To the standard error, as bytes if it has them: they may end within a character."""
    raw = getattr(sys.stderr, "buffer", None)
    if raw is None:
        sys.stderr.write(part.decode(errors="replace"))
    else:
        raw.write(part)
    sys.stderr.flush()


def _hello(line: bytes) -> dict[str, object] | None:
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and agent.HELLO in said else None


def _chunks(parts: Iterable[bytes]) -> Iterable[memoryview]:
    for part in parts:
        view = memoryview(part)
        yield from (view[at : at + _CHUNK] for at in range(0, len(view), _CHUNK))
