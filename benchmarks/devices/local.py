"""The machine that bnnedge runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console

from bnnedge.benchmarks.devices.device import BenchmarkInput, BenchmarkSettings, Device, ModelFile
from bnnedge.benchmarks.environment import read_environment, utc_now
from bnnedge.benchmarks.memory import peak_memory_bytes
from bnnedge.benchmarks.rows import BenchmarkRow
from bnnedge.benchmarks.turns import Contender, Seconds, quantiles, take_turns
from bnnedge.errors import BenchmarkError, ExportError
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.runtimes.runtime import Session
from bnnedge.progress import shown
from bnnedge.tasks.task import Tally

TIMED_SAMPLES = 16
"""Different samples that the timed runs cycle through."""


class LocalDevice(Device):
    """Measures times and scores in this process, and the peak memory of each file in a fresh one."""

    name = "local"

    @classmethod
    def open(cls, address: str) -> LocalDevice:
        if address:
            raise BenchmarkError(f"device local is this machine and has no address, found {address!r}")
        return cls()

    def close(self) -> None:
        """Nothing is held."""

    def unavailable(self, runtime: str) -> str | None:
        why: str | None = RUNTIMES.load(runtime).unavailable()
        return why

    def measure(
        self,
        files: Sequence[ModelFile],
        data: BenchmarkInput,
        settings: BenchmarkSettings,
        console: Console | None = None,
    ) -> list[BenchmarkRow]:
        console = console or Console(stderr=True)
        # Read first: afterwards the load average would be this benchmark's own.
        environment = asdict(read_environment())
        opened = [OpenFile.open(file, data, settings.threads) for file in files]
        memory = [peak_memory_bytes(f.data, f.runtime, f.input_shape, settings.threads) for f in files]
        contenders = [file.contender() for file in opened]
        started_at = utc_now()
        measured = take_turns(contenders, settings.runs, settings.warmup, console=console)
        return [
            BenchmarkRow(
                **_given(file, data, settings),
                **_latency(seconds),
                **opened_file.scores(console),
                peak_memory_bytes=peak,
                environment=environment,
                started_at=started_at,
            )
            for file, opened_file, peak, seconds in zip(files, opened, memory, measured, strict=True)
        ]


@dataclass(frozen=True)
class OpenFile:
    """A file in its runtime, and the input that it is measured on."""

    file: ModelFile
    session: Session
    data: BenchmarkInput

    @classmethod
    def open(cls, file: ModelFile, data: BenchmarkInput, threads: int) -> OpenFile:
        """Load ``file`` and check its output for one sample: a wrong output has no latency worth reporting."""
        try:
            session: Session = RUNTIMES.load(file.runtime).open(file.data, threads)
        except ExportError as error:
            raise ExportError(f"{file.label}: {error}") from error
        inputs, _ = data.samples(file, slice(1))
        output = session.run(inputs)
        described = data.description_for(file)
        if described is not None and output.shape != (1, *described.output_shape):
            raise BenchmarkError(
                f"{file.label}: expected output {[1, *described.output_shape]}, as task {described.task.name} has with "
                f"{described.info.outputs} outputs, found {list(output.shape)}"
            )
        if not np.isfinite(output).all():
            raise BenchmarkError(f"{file.label}: the output is not finite; the file or {file.runtime} is broken")
        return cls(file, session, data)

    def contender(self) -> Contender:
        """The file as a contender that is timed on one sample a run."""
        inputs, _ = self.data.samples(self.file, slice(TIMED_SAMPLES))
        prepared = [self.session.prepare(inputs[i : i + 1]) for i in range(len(inputs))]
        return Contender(self.file.label, [partial(self.session.invoke, one) for one in prepared])

    def scores(self, console: Console) -> dict[str, Any]:
        """The fields of the row that say how well the file does its task; one sample a run, as on the device."""
        described = self.data.description_for(self.file)
        task = None if described is None else described.task.name
        if described is None or self.data.targets is None or not self.file.trained:
            return {"task": task, "scores": {}, "samples": 0}
        tally, count = Tally(described.task), len(self.data.images)
        for i in shown(range(count), f"scores of {self.file.label}", count, console):
            inputs, targets = self.data.samples(self.file, slice(i, i + 1))
            tally.add(self.session.run(inputs), targets)
        return {"task": task, "scores": tally.scores, "samples": tally.samples}


def _given(file: ModelFile, data: BenchmarkInput, settings: BenchmarkSettings) -> dict[str, Any]:
    """The fields of a row that are known before anything is measured."""
    return {
        "file": file.label,
        "runtime": file.runtime,
        "runtime_version": RUNTIMES.load(file.runtime).version(),
        "device": LocalDevice.name,
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
