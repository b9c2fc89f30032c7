"""The connection to an agent: a process here whose standard streams are those of the agent.

Nothing is waited for without a limit, since the other end may be silent, slow or broken in any way.
"""

from __future__ import annotations

import os
import queue
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from bnnedge.benchmarks.devices.remote.protocol import Message, encode, receive
from bnnedge.errors import MissingDependencyError, printable
from bnnedge.progress import Report

_CHUNK_BYTES = 65536
_PATIENCE_S = 2
"""Time for what comes at once or not at all."""
_STALLED_S = 60
"""Time without a byte after which sending is given up."""


class Connection:
    """A running process, such as ``ssh``, that reaches an agent."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start ``command``. Raises ``MissingDependencyError`` if it is not there."""
        try:
            self._process = subprocess.Popen(
                command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise MissingDependencyError(f"{printable(command[0])} cannot be started: {why}; install it") from error
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._to: IO[bytes] = self._process.stdin
        self._from = TimedStream(self._process.stdout)
        self._errors = _ErrorStream(self._process.stderr)

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._to.close()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE_S)
        self._process.kill()
        self._process.wait()

    def read_line(self, most: int) -> bytes:
        """One line, at most ``most`` bytes of it; empty at the end of the stream. Raises ``TimeoutError``."""
        return self._from.readline(most)

    def receive(self) -> Message | None:
        """The next message, as ``protocol.receive`` gives and raises. Raises ``TimeoutError``."""
        return receive(self._from)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Let what is read inside of ``with`` take at most ``seconds`` altogether; then ``TimeoutError`` is raised."""
        self._from.deadline = time.monotonic() + seconds
        yield

    def send(self, message: Message, report: Report | None) -> None:
        """Send ``message`` and tell ``report`` how many KiB of it are written.

        Raises ``BrokenPipeError`` if the other end is gone, ``TimeoutError`` if it takes nothing any more.
        """
        parts = list(encode(message))
        total = sum(map(len, parts))
        writing = _Writing(self._to, parts)
        written, since = 0, time.monotonic()
        while writing.goes_on():
            if writing.written > written:
                written, since = writing.written, time.monotonic()
                if report is not None:
                    report("sending, in KiB", written >> 10, total >> 10)
            elif time.monotonic() - since > _STALLED_S:
                raise TimeoutError(f"took nothing for {_STALLED_S} s")
        if writing.written < total:
            raise BrokenPipeError

    def end(self) -> tuple[int, str]:
        """Exit code of a process that has ended, or is not worth keeping and is killed, and its last error line."""
        try:
            code = self._process.wait(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return code, printable(self._errors.last_line()) or f"exit code {code}"


class TimedStream:
    """A stream that is read by a thread, so that waiting for it can end at ``deadline`` of ``time.monotonic()``."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.deadline = time.monotonic()
        self._stream = stream
        self._chunks: queue.Queue[bytes] = queue.Queue(maxsize=16)
        self._kept = bytearray()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with suppress(OSError, ValueError):
            while part := os.read(self._stream.fileno(), _CHUNK_BYTES):
                self._chunks.put(part)
        self._chunks.put(b"")

    def readline(self, most: int = -1) -> bytes:
        """As that of a file. Raises ``TimeoutError``."""
        searched = 0
        while (found := self._kept.find(b"\n", searched)) < 0 and (most < 0 or len(self._kept) < most):
            searched = len(self._kept)
            if not self._more():
                break
        length = found + 1 if found >= 0 else len(self._kept)
        return self._take(length if most < 0 else min(length, most))

    def read(self, size: int) -> bytes:
        """As that of a file. Raises ``TimeoutError``."""
        while len(self._kept) < size and self._more():
            pass
        return self._take(size)

    def _more(self) -> bool:
        """Wait for the next bytes; False at the end of the stream."""
        if self._ended:
            return False
        try:
            part = self._chunks.get(timeout=max(self.deadline - time.monotonic(), 0))
        except queue.Empty:
            raise TimeoutError from None
        self._ended = not part
        self._kept += part
        return not self._ended

    def _take(self, size: int) -> bytes:
        taken = bytes(self._kept[:size])
        del self._kept[:size]
        return taken


class _Writing:
    """Bytes that a thread writes, since the other end may stop to read them."""

    def __init__(self, stream: IO[bytes], parts: Sequence[bytes]) -> None:
        self.written = 0
        self._stream = stream
        self._parts = parts
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        with suppress(OSError, ValueError):
            for chunk in _chunks(self._parts):
                rest = chunk
                while rest:
                    count = self._stream.write(rest)
                    self.written += count
                    rest = rest[count:]

    def goes_on(self) -> bool:
        """Whether there is more to write, after a short wait."""
        self._thread.join(0.1)
        return self._thread.is_alive()


class _ErrorStream:
    """The end of the standard error of a process, which a thread reads."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._kept = bytearray()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while part := os.read(self._stream.fileno(), _CHUNK_BYTES):
            with self._lock:
                self._kept += part
                del self._kept[:-_CHUNK_BYTES]

    def last_line(self) -> str:
        self._thread.join(timeout=_PATIENCE_S)
        with self._lock:
            lines = [line.strip() for line in self._kept.decode(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")


def _chunks(parts: Iterable[bytes]) -> Iterable[memoryview]:
    for part in parts:
        view = memoryview(part)
        yield from (view[at : at + _CHUNK_BYTES] for at in range(0, len(view), _CHUNK_BYTES))
