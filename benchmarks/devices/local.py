"""The machine that bnnedge runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console

from bnnedge.benchmarks.devices.device import BenchmarkInput, BenchmarkPlan, Device, ModelFile
from bnnedge.benchmarks.environment import read_environment, utc_now
from bnnedge.benchmarks.memory import peak_memory_bytes
from bnnedge.benchmarks.result import BenchmarkRow
from bnnedge.benchmarks.runner import Contender, measure_latencies, quantiles
from bnnedge.errors import BenchmarkError, ExportError
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.runtimes.runtime import Images, Session
from bnnedge.progress import shown

TIMED_IMAGES = 16
"""Different images that the timed runs cycle through."""


class LocalDevice(Device):
    """Measures in this process; peak memory in one fresh process a file."""

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
        self, files: Sequence[ModelFile], data: BenchmarkInput, plan: BenchmarkPlan, console: Console | None = None
    ) -> list[BenchmarkRow]:
        console = console or Console(stderr=True)
        # Read first: afterwards the load average would be this benchmark's own.
        environment = asdict(read_environment())
        sessions = [_open(file, data.images[:1], plan.threads) for file in files]
        memory = [peak_memory_bytes(f.data, f.runtime, f.input_shape, plan.threads) for f in files]
        contenders = [
            Contender(file.label, session, [session.prepare(data.images[i : i + 1]) for i in range(_timed(data))])
            for file, session in zip(files, sessions, strict=True)
        ]
        started_at = utc_now()
        latencies = measure_latencies(contenders, plan.warmup, plan.runs, console)
        rows = []
        for file, session, peak, latency in zip(files, sessions, memory, latencies, strict=True):
            q = quantiles(latency)
            scored = file.trained and data.labels is not None
            row = BenchmarkRow(
                **_settings(file, data, plan),
                p20_ms=q.p20_ms,
                p50_ms=q.p50_ms,
                p80_ms=q.p80_ms,
                images_per_s=1000 / q.p50_ms,
                top1=top1(session, data, file.label, console) if scored else None,
                top1_images=len(data.images) if scored else 0,
                peak_memory_bytes=peak,
                environment=environment,
                started_at=started_at,
            )
            rows.append(row)
        return rows


def _settings(file: ModelFile, data: BenchmarkInput, plan: BenchmarkPlan) -> dict[str, Any]:
    """The fields of a row that are known before anything is measured."""
    return {
        "file": file.label,
        "runtime": file.runtime,
        "runtime_version": RUNTIMES.load(file.runtime).version(),
        "device": LocalDevice.name,
        "threads": plan.threads,
        "input": data.name,
        "batch_size": 1,
        "warmup": plan.warmup,
        "runs": plan.runs,
        "file_bytes": len(file.data),
        "metadata": file.metadata,
    }


def top1(session: Session, data: BenchmarkInput, label: str = "", console: Console | None = None) -> float:
    """Fraction of ``data`` whose largest output is at the label, in [0, 1]; one image a run, as on the device."""
    if data.labels is None:
        raise BenchmarkError(f"{data.name} has no labels to compare with")
    right = 0
    count = len(data.images)
    for i in shown(range(count), f"accuracy {label}", count, console or Console(stderr=True)):
        right += int(np.argmax(session.run(data.images[i : i + 1])) == data.labels[i])
    return right / count


def _timed(data: BenchmarkInput) -> int:
    return min(TIMED_IMAGES, len(data.images))


def _open(file: ModelFile, image: Images, threads: int) -> Session:
    """Load ``file`` and look at one output: a wrong result has no latency worth reporting."""
    try:
        session: Session = RUNTIMES.load(file.runtime).open(file.data, threads)
    except ExportError as error:
        raise ExportError(f"{file.label}: {error}") from error
    output = session.run(image)
    classes = file.metadata.get("num_classes")
    if isinstance(classes, int) and output.shape != (1, classes):
        raise BenchmarkError(f"{file.label}: expected output [1, {classes}], found {list(output.shape)}")
    if not np.isfinite(output).all():
        raise BenchmarkError(f"{file.label}: the output is not finite; the file or {file.runtime} is broken")
    return session
