"""Peak memory of one file: what loading and running it adds to a process that has its runtime at work already.

A fresh Python process imports the runtime, runs the smallest network of the file's format, so that libraries are loaded
and threads started, and notes its resident memory. Then it reads the file, opens it, runs it and notes the highest
resident memory since (``VmHWM`` of /proc/self/status, which is reset in between through /proc/self/clear_refs). The
difference is the answer. It holds the file's own bytes, the runtime's copies of the weights and its arena; it does not
hold Python, the libraries, or what the runtime needs for any file. The kernel keeps these counters loosely, to within
some dozens of pages per thread, and the operators that a file is first to use bring their code in: differences below
about 1 MB mean little.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bnnedge.errors import BenchmarkError
from bnnedge.export.graph import Graph, Linear, TensorSpec
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.runtimes.child import die_with_parent, python_command
from bnnedge.export.targets import TARGETS

_RUNS = 3
_TIMEOUT_S = 600
_STATUS = Path("/proc/self/status")


def peak_memory_bytes(data: bytes, runtime: str, input_shape: Sequence[int], threads: int = 1) -> int | None:
    """Bytes that the file ``data`` adds, opened by ``runtime`` (a name in RUNTIMES) and run on one image [C, H, W].

    None on systems without /proc. Raises ``BenchmarkError`` if the process that measures dies.
    """
    if not _STATUS.exists():
        return None
    RUNTIMES.check(runtime)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model")
        file.write_bytes(data)
        request = json.dumps([str(file), runtime, list(input_shape), threads])
        try:
            done = subprocess.run(python_command(__name__, request), capture_output=True, text=True, timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(f"measuring memory with {runtime} took more than {_TIMEOUT_S} s; gave up") from error
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise BenchmarkError(f"measuring memory with {runtime} failed: {why}")
    return int(done.stdout.splitlines()[-1])


def _measure_here(file: Path, runtime_name: str, input_shape: Sequence[int], threads: int) -> int:
    runtime = RUNTIMES.load(runtime_name)
    if why := runtime.unavailable():
        raise BenchmarkError(why)
    runtime.open(_smallest_file(runtime_name), threads).run(np.zeros((1, 1), np.float32))
    image = np.zeros((1, *input_shape), np.float32)
    before = restart_peak()
    session = runtime.open(file.read_bytes(), threads)
    prepared = session.prepare(image)
    for _ in range(_RUNS):
        session.invoke(prepared)
    return max(status_bytes("VmHWM") - before, 0)


def _smallest_file(runtime_name: str) -> bytes:
    """A network of one product, in the format that ``runtime_name`` runs."""
    one = np.ones((1, 1))
    node = Linear(name="fc", inputs=("x",), output="y", weight=one, bias=one[0])
    graph = Graph(("x",), ("y",), [node], {name: TensorSpec((1, 1)) for name in "xy"}, {"input_shape": [1]})
    targets = (TARGETS.load(name)() for name in TARGETS)
    data: bytes = next(target for target in targets if runtime_name in target.runtimes).write(graph)
    return data


def restart_peak() -> int:
    """Set the peak back to the present resident memory, and return that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        # The peak cannot be reset, so it is counted from: otherwise the peak of the imports would count as the file's.
        return status_bytes("VmHWM")
    return status_bytes("VmRSS")


def status_bytes(field: str) -> int:
    """A memory field of /proc/self/status, such as ``VmRSS``, in bytes. Raises ``BenchmarkError`` if it has none."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise BenchmarkError(f"{_STATUS} has no {field}")


def main() -> None:
    """Print the bytes for the request in the first argument."""
    die_with_parent()
    path, name, shape, thread_count = json.loads(sys.argv[1])
    print(_measure_here(Path(path), name, shape, thread_count))
