"""A process of its own for work on a file that a runtime may crash on, never finish or take all memory for.

The parent sends pickled requests. The child answers with JSON and numbers alone, never with pickles, for what a damaged
file makes of the child must not reach the parent. The child starts Python anew, since a process with threads cannot be
forked safely; it ends when its parent ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnnedge import errors
from bnnedge.errors import BnnedgeError, ExportError, one_line, printable
from bnnedge.noise import debugging
from bnnedge.progress import Report

if TYPE_CHECKING:
    from typing_extensions import Self

_GIB, _MIB = 2**30, 2**20
_LENGTHS = struct.Struct("<QQ")
_MOST_JSON = 64 * _MIB
_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_SIGNS_OF_MEMORY = ("bad_alloc", "allocate", "memory")
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Limits:
    """What a child may use. Networks that run take far less."""

    memory_bytes: int
    """Writable memory of the process."""
    load_s: float
    """Seconds for loading a file."""
    run_s: float
    """Seconds for running one batch."""

    @classmethod
    def of(cls, file_bytes: int, batch_bytes: int, threads: int = 1) -> Limits:
        """Limits for a file, run on batches of ``batch_bytes``.

        A stock runtime unpacks 1-bit weights to float32 and keeps some copies of them; layers have some dozen times as
        many values as the input.
        """
        wanted = 1.25 * _GIB + 128 * file_bytes + 128 * batch_bytes + 16 * _MIB * threads
        return cls(
            memory_bytes=int(min(wanted, _machine_bytes())),
            load_s=12 + 5 * file_bytes / _MIB,
            run_s=10 + 5 * (file_bytes + batch_bytes) / _MIB,
        )

    def with_more_memory(self, more: int) -> Limits:
        """The same limits for a process that holds ``more`` bytes besides."""
        return replace(self, memory_bytes=int(min(self.memory_bytes + more, _machine_bytes())))


def _machine_bytes() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return float("inf")


class Child:
    """The parent's end. ``with`` ends the process.

    ``doing`` says what the child is at, for messages: ``net.tflite: litert loading it``. A child may say so itself.
    ``progress`` is told what the child reports.
    """

    def __init__(self, module: str, limits: Limits, doing: str, progress: Report | None = None) -> None:
        self.limits = limits
        self.doing = doing
        self._progress = progress
        self._process = subprocess.Popen(
            python_command(module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if debugging() else subprocess.DEVNULL,
        )

    def send(self, request: Any) -> None:
        """Send a request without waiting for its answer. Raises ``ExportError`` if the child has died."""
        assert self._process.stdin is not None
        try:
            pickle.dump(request, self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
        except OSError as error:
            raise self._died() from error

    def receive(self) -> tuple[dict[str, Any], Arrays]:
        """Wait for the next answer.

        Raises the ``BnnedgeError`` that the child met, or ``ExportError`` if it died: the message says of what.
        """
        while True:
            answer, arrays = self._next()
            if "doing" in answer:
                self.doing = printable(answer["doing"], most=600)
            elif "progress" in answer:
                what, done, total = answer["progress"]
                if self._progress is not None:
                    self._progress(printable(what), done, total)
            elif "error" in answer:
                raise self._error(*answer["error"])
            else:
                return answer, arrays

    def _next(self) -> tuple[dict[str, Any], Arrays]:
        assert self._process.stdout is not None
        pipe = self._process.stdout
        lengths = pipe.read(_LENGTHS.size)
        if len(lengths) < _LENGTHS.size:
            raise self._died()
        header_length, length = _LENGTHS.unpack(lengths)
        if header_length > _MOST_JSON or length > self.limits.memory_bytes:
            raise ExportError(f"{self.doing}: the process sends nonsense; the file is broken")
        header, values = pipe.read(header_length), pipe.read(length)
        if len(header) < header_length or len(values) < length:
            raise self._died()
        answer = json.loads(header)
        return answer, _arrays(answer.pop("arrays", []), values)

    def ask(self, request: Any) -> tuple[dict[str, Any], Arrays]:
        self.send(request)
        return self.receive()

    def close(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _died(self) -> ExportError:
        code = self._process.wait()
        memory = f"{self.limits.memory_bytes / _GIB:.1f} GiB"
        if code == -signal.SIGALRM:
            what = f"gave no result within {self._seconds():.0f} s"
        elif code == -signal.SIGKILL:
            what = f"was killed; it may have taken too much memory (at most {memory} are allowed)"
        elif code < 0:
            what = f"crashed with signal {-code} ({signal.strsignal(-code)}); at most {memory} of memory are allowed"
        else:
            what = f"ended with exit code {code}"
        return ExportError(f"{self.doing}: the process {what}; the file is broken or is none that this runtime can run")

    def _seconds(self) -> float:
        return self.limits.run_s if "running" in self.doing else self.limits.load_s

    def _error(self, kind: str, text: str) -> BnnedgeError:
        text = printable(text, most=600)
        known = getattr(errors, kind, None)
        if any(sign in text for sign in _SIGNS_OF_MEMORY):
            text += f" (at most {self.limits.memory_bytes / _GIB:.1f} GiB of memory are allowed)"
        if isinstance(known, type) and issubclass(known, BnnedgeError):
            return known(text)
        return ExportError(f"{self.doing}: {text}")


class Parent:
    """The child's end. It puts the limits on the process in which it is made."""

    def __init__(self) -> None:
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._requests = sys.stdin.buffer
        # What libraries write to the standard output must not get among the answers.
        self._answers = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def requests(self) -> Iterator[Any]:
        """The requests, until the parent closes the pipe."""
        while True:
            try:
                yield pickle.load(self._requests)
            except EOFError:
                return

    def send(self, answer: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
        stored = {name: np.ascontiguousarray(values) for name, values in (arrays or {}).items()}
        kinds = [[name, values.dtype.str, list(values.shape)] for name, values in stored.items()]
        header = json.dumps({**answer, "arrays": kinds}).encode()
        self._answers.write(_LENGTHS.pack(len(header), sum(values.nbytes for values in stored.values())))
        self._answers.write(header)
        for values in stored.values():
            self._answers.write(values.tobytes())
        self._answers.flush()

    def say(self, doing: str) -> None:
        """Tell the parent what is being done."""
        self.send({"doing": doing})

    def report(self, what: str, done: int, total: int) -> None:
        """Tell the parent how far it is, see ``progress.Report``."""
        self.send({"progress": [what, done, total]})

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Send the parent what goes wrong inside of ``with``."""
        try:
            yield
        except MemoryError:
            self.send({"error": ["", "the memory is not enough"]})
        except BnnedgeError as error:
            self.send({"error": [type(error).__name__, str(error)]})
        except Exception as error:
            self.send({"error": ["", f"{type(error).__name__}: {one_line(error)}"]})


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """End this process by SIGALRM if the body of ``with`` takes longer, also where no Python code runs any more."""
    restart_alarm(seconds)
    try:
        yield
    finally:
        restart_alarm(0)


def restart_alarm(seconds: float) -> None:
    """End this process by SIGALRM after ``seconds``; 0 for never."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def limit_memory(most: int) -> None:
    """Let further allocations of this process fail once it has ``most`` bytes of writable memory."""
    try:
        import resource
    except ImportError:  # a system without such limits
        return
    for kind, value in ((resource.RLIMIT_DATA, most), (resource.RLIMIT_CORE, 0)):
        with suppress(OSError, ValueError):
            hard = resource.getrlimit(kind)[1]
            allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (allowed, hard))


def die_with_parent() -> None:
    """Let the kernel end this process when its parent ends, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs ``main`` of ``module`` in a new Python that finds the same packages as this one.

    ``-m`` would look into the working folder first, whose files may be anybody's.
    """
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main()"
    return [sys.executable, "-c", code, *arguments]


def _arrays(kinds: list[Any], values: bytes) -> Arrays:
    found, start = {}, 0
    for name, dtype, shape in kinds:
        if dtype[1:] not in ("f4", "f8", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"):
            raise ExportError(f"{printable(name)}: expected an output of numbers, found the type {printable(dtype)}")
        count = int(np.prod(shape, dtype=np.int64))
        found[name] = np.frombuffer(values, np.dtype(dtype), count, start).reshape(shape)
        start += found[name].nbytes
    return found
