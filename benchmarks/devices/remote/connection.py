"""The connection to an agent: a process here whose standard streams are those of the agent."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from bnnedge.benchmarks.devices.remote.protocol import Message, encode, receive
from bnnedge.errors import MissingDependencyError

_CHUNK_BYTES = 65536
_PATIENCE_S = 2
"""Time for what comes at once or not at all."""


class Connection:
    """A running process, such as ``ssh``, that reaches an agent."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start ``command``. Raises ``MissingDependencyError`` if it is not there."""
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as error:
            raise MissingDependencyError(f"{command[0]} cannot be started: {error.strerror}; install it") from error
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._to: IO[bytes] = self._process.stdin
        self._from: IO[bytes] = self._process.stdout
        self._errors = _ErrorStream(self._process.stderr)

    def close(self) -> None:
        """End the process."""
        for stream in (self._to, self._from):
            try:
                stream.close()
            except OSError:  # nobody is there to read what was left to write
                continue
        self._process.terminate()
        self._process.wait()

    def read_line(self, most: int) -> bytes:
        """One line, at most ``most`` bytes of it; empty at the end of the stream."""
        return self._from.readline(most)

    def send(self, message: Message, console: Console | None) -> None:
        """Send ``message``, with a progress bar if ``console`` is a terminal."""
        parts = list(encode(message))
        columns = (TextColumn("sending"), BarColumn(), DownloadColumn(), TextColumn("left"), TimeRemainingColumn())
        hidden = console is None or not console.is_terminal
        with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
            bar = progress.add_task("", total=sum(map(len, parts)))
            for chunk in _chunks(parts):
                self._to.write(chunk)
                progress.advance(bar, len(chunk))
            self._to.flush()

    def receive(self) -> Message | None:
        """The next message, as ``protocol.receive`` gives and raises."""
        return receive(self._from)

    def show_errors(self) -> None:
        """Begin to copy the agent's standard error, where its progress is drawn, to that of this process."""
        self._errors.show()

    def end(self) -> tuple[int, str]:
        """Exit code of a process that has ended, or is not worth keeping and is killed, and its last error line."""
        try:
            code = self._process.wait(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return code, self._errors.last_line() or f"exit code {code}"


class _ErrorStream:
    """The standard error of a process, read by a thread: at first it is only kept, after ``show`` also copied here."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._kept = bytearray()
        self._shown = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while part := os.read(self._stream.fileno(), _CHUNK_BYTES):
            with self._lock:
                self._kept += part
                del self._kept[:-_CHUNK_BYTES]
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
    """Write to the standard error, as bytes where it takes bytes, since ``part`` may end within a character."""
    raw = getattr(sys.stderr, "buffer", None)
    if raw is None:
        sys.stderr.write(part.decode(errors="replace"))
    else:
        raw.write(part)
    sys.stderr.flush()


def _chunks(parts: Iterable[bytes]) -> Iterable[memoryview]:
    for part in parts:
        view = memoryview(part)
        yield from (view[at : at + _CHUNK_BYTES] for at in range(0, len(view), _CHUNK_BYTES))
