"""How files are measured on this machine: times and scores in one process, the peak memory of each in a fresh one.

``LocalDevice`` runs ``main`` in a process of its own, so that a file on which a runtime crashes is an error here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.benchmarks.devices.device import BenchmarkInput, BenchmarkSettings, ModelFile
from bnnedge.benchmarks.environment import read_environment, utc_now
from bnnedge.benchmarks.memory import peak_memory_bytes
from bnnedge.benchmarks.rows import BenchmarkRow
from bnnedge.benchmarks.turns import Contender, Seconds, quantiles, take_turns
from bnnedge.errors import BenchmarkError, ExportError
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.runtimes.child import Limits, Parent, limit_memory, restart_alarm, within
from bnnedge.export.runtimes.runtime import Session
from bnnedge.progress import Report, counted
from bnnedge.tasks.task import Tally

LOCAL = "local"
"""The device of rows that were measured here."""
TIMED_SAMPLES = 16
"""Different samples that the timed runs cycle through."""
_SLOWDOWN = 20
"""How much slower than its first run a file may get before it counts as one that never ends."""


@dataclass(frozen=True)
class Measuring:
    """What the measuring process is asked for."""

    files: Sequence[ModelFile]
    data: BenchmarkInput
    settings: BenchmarkSettings
    limits: Limits

    @classmethod
    def of(cls, files: Sequence[ModelFile], data: BenchmarkInput, settings: BenchmarkSettings) -> Measuring:
        """The request, with limits that fit the files and the samples."""
        batch_bytes = 4 * max(int(np.prod(file.input_shape)) for file in files)
        limits = Limits.of(sum(len(file.data) for file in files), batch_bytes, settings.threads)
        samples = data.images.nbytes + (0 if data.targets is None else data.targets.nbytes)
        return cls(files, data, settings, limits.with_more_memory(4 * samples))


def main() -> None:
    """Answer one ``Measuring`` by rows."""
    parent = Parent()
    for asked in parent.requests():
        limit_memory(asked.limits.memory_bytes)
        with parent.answering():
            rows = measure_here(asked, parent.say, parent.report)
            parent.send({"rows": [json.loads(row.to_json()) for row in rows]})


def measure_here(asked: Measuring, say: Callable[[str], None], report: Report | None = None) -> list[BenchmarkRow]:
    """Measure in this process, which a file on which a runtime crashes may end. ``say`` is told what is being done."""
    files, data, settings = asked.files, asked.data, asked.settings
    # Read first: afterwards the load average would be this benchmark's own.
    environment = asdict(read_environment())
    opened, memory = [], []
    for file in files:
        say(f"{file.label}: {file.runtime} loading and running it")
        with within(asked.limits.load_s + asked.limits.run_s):
            opened.append(OpenFile.open(file, data, settings.threads))
        memory.append(peak_memory_bytes(file.data, file.runtime, file.input_shape, settings.threads))
    say(f"measuring {', '.join(file.label for file in files)}")
    longest = sum(file.first_run_s for file in opened) * (settings.warmup + settings.runs + len(data.images))
    restart_alarm(asked.limits.run_s + _SLOWDOWN * longest)
    started_at = utc_now()
    measured = take_turns([file.contender() for file in opened], settings.runs, settings.warmup, report=report)
    rows = [
        BenchmarkRow(
            **_given(file, data, settings),
            **_latency(seconds),
            **opened_file.scores(report),
            peak_memory_bytes=peak,
            environment=environment,
            started_at=started_at,
        )
        for file, opened_file, peak, seconds in zip(files, opened, memory, measured, strict=True)
    ]
    restart_alarm(0)
    return rows


@dataclass(frozen=True)
class OpenFile:
    """A file in its runtime, and the input that it is measured on."""

    file: ModelFile
    session: Session
    data: BenchmarkInput
    first_run_s: float
    """Seconds of its first run, which is on one sample."""

    @classmethod
    def open(cls, file: ModelFile, data: BenchmarkInput, threads: int) -> OpenFile:
        """Load ``file`` and check its output for one sample: a wrong output has no latency worth reporting."""
        inputs, _ = data.samples(file, slice(1))
        try:
            session: Session = RUNTIMES.load(file.runtime).open(file.data, threads)
            started = time.perf_counter()
            output = session.run(inputs)
        except ExportError as error:
            raise ExportError(f"{file.label}: {error}") from error
        opened = cls(file, session, data, time.perf_counter() - started)
        described = data.description_for(file)
        if described is not None and output.shape != (1, *described.output_shape):
            raise BenchmarkError(
                f"{file.label}: expected output {[1, *described.output_shape]}, as task {described.task.name} has with "
                f"{described.info.outputs} outputs, found {list(output.shape)}"
            )
        opened._check_finite(output)
        return opened

    def contender(self) -> Contender:
        """The file as a contender that is timed on one sample a run."""
        inputs, _ = self.data.samples(self.file, slice(TIMED_SAMPLES))
        prepared = [self.session.prepare(inputs[i : i + 1]) for i in range(len(inputs))]
        return Contender(self.file.label, [partial(self.session.invoke, one) for one in prepared])

    def scores(self, report: Report | None) -> dict[str, Any]:
        """The fields of the row that say how well the file does its task; one sample a run, as on the device."""
        described = self.data.description_for(self.file)
        task = None if described is None else described.task.name
        if described is None or self.data.targets is None or not self.file.trained:
            return {"task": task, "scores": {}, "samples": 0}
        tally, count = Tally(described.task), len(self.data.images)
        for i in counted(count, f"scores of {self.file.label}", report):
            inputs, targets = self.data.samples(self.file, slice(i, i + 1))
            outputs = self.session.run(inputs)
            self._check_finite(outputs)
            tally.add(outputs, targets)
        return {"task": task, "scores": tally.scores, "samples": tally.samples}

    def _check_finite(self, outputs: NDArray[np.float32]) -> None:
        if not np.isfinite(outputs).all():
            raise BenchmarkError(
                f"{self.file.label}: an output is not finite; the file or {self.file.runtime} is broken"
            )


def _given(file: ModelFile, data: BenchmarkInput, settings: BenchmarkSettings) -> dict[str, Any]:
    """The fields of a row that are known before anything is measured."""
    return {
        "file": file.label,
        "runtime": file.runtime,
        "runtime_version": RUNTIMES.load(file.runtime).version(),
        "device": LOCAL,
        "threads": settings.threads,
        "input": data.name,
        "batch_size": 1,
        "warmup": settings.warmup,
        "runs": settings.runs,
        "file_bytes": len(file.data),
        "metadata": file.metadata,
    }


def _latency(seconds: Seconds) -> dict[str, Any]:
    ms = quantiles(seconds * 1e3)
    return {"p20_ms": ms.p20, "p50_ms": ms.p50, "p80_ms": ms.p80, "images_per_s": 1000 / ms.p50}
