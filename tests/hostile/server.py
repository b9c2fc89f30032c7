"""Runs bnnedge commands, each in a process forked from one that has imported everything, within a time and a memory.

A line of JSON on standard input asks for a command, a line on standard output tells how it ended, see ``Server``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 30
BYTES = 2 << 30
IMPORTED = (
    "ai_edge_litert.interpreter",
    "matplotlib.pyplot",
    "onnx",
    "onnxruntime",
    "sklearn.datasets",
    "torch",
    "bnnedge.benchmarks.bench",
    "bnnedge.benchmarks.report",
    "bnnedge.cli.app",
    "bnnedge.export.run",
    "bnnedge.export.summary",
    "bnnedge.train.start",
)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """The exit code, or minus the number of the signal that ended it."""
    out: str
    err: str
    seconds: float
    bytes: int
    """The most memory that the command or a process started by it had resident."""


class Server:
    """The process that forks; commands run one after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        )

    def run(self, arguments: Sequence[str], folder: Path, environment: dict[str, str] | None = None) -> Ended:
        """Run ``bnnedge ARGUMENTS`` in ``folder``."""
        assert self._process.stdin and self._process.stdout
        request = {"arguments": list(arguments), "folder": str(folder), "environment": environment or {}}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def _serve() -> None:
    # Imported once here, so that no command waits for it.
    for module in IMPORTED:
        importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "wb")
    for line in sys.stdin.buffer:
        answers.write(json.dumps(_forked(json.loads(line))).encode() + b"\n")
        answers.flush()


def _forked(request: dict[str, Any]) -> dict[str, Any]:
    began = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            _run(request, out.fileno(), err.fileno())
        status, usage = _wait(child, began + SECONDS)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(1 << 20).decode(errors="replace"))
    return {
        "code": os.waitstatus_to_exitcode(status),
        "out": texts[0],
        "err": texts[1],
        "seconds": time.monotonic() - began,
        "bytes": usage.ru_maxrss * 1024,
    }


def _wait(child: int, end: float) -> tuple[int, resource.struct_rusage]:
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            break
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # whatever it left behind
    return status, usage


def _run(request: dict[str, Any], out: int, err: int) -> None:
    code: object = 70
    try:
        os.setsid()
        os.chdir(request["folder"])
        os.environ.update(request["environment"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        most = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        from bnnedge.cli import main

        code = main(request["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 70)


if __name__ == "__main__":
    _serve()
