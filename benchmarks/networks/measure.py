"""From a network's name to rows: build, open, check, time in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bnnedge.benchmarks.devices.device import BenchmarkPlan
from bnnedge.benchmarks.environment import read_environment, utc_now
from bnnedge.benchmarks.networks.contenders import CHECK_IMAGES, Candidate, candidates, open_checked
from bnnedge.benchmarks.networks.twins import build, noise
from bnnedge.benchmarks.result import BenchmarkRow
from bnnedge.benchmarks.runner import Contender, measure_latencies, quantiles
from bnnedge.export.runtimes.runtime import Images, Session

INPUT = "random normal"
TIMED_IMAGES = 4
REST_S = 0.1
"""Helper threads of ONNX Runtime go on spinning for 30 ms after a run, those of PyTorch for 10 (seen on Zen 4)."""
WAKE_S = 0.02
"""Running time after a pause: with one run LiteRT's twins on two threads were as slow as on one (seen on Linux)."""


class Rest(Session):
    """A pause in which others' helper threads fall asleep, then runs that are not measured to get one's own going.

    It stands before each contender that has several threads. ONNX Runtime could be told to stop spinning at the end of
    a run, but that makes its own runs slower, and peers are measured at their best.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def prepare(self, images: Images) -> Any:
        return self._session.prepare(images)

    def invoke(self, prepared: Any) -> NDArray[np.float32]:
        time.sleep(REST_S)
        started = time.perf_counter()
        while True:
            output = self._session.invoke(prepared)
            if time.perf_counter() - started >= WAKE_S:
                return output


def measure(
    name: str,
    image_size: int,
    num_classes: int,
    plan: BenchmarkPlan,
    leave_out: Callable[[str], None],
    console: Console | None = None,
    int8_stem: bool = False,
) -> list[BenchmarkRow]:
    """One row a contender, ours first. Raises a ``BnnedgeError`` if one of ours fails or gives a wrong result."""
    # Read first: afterwards the load average would be this benchmark's own.
    environment = asdict(read_environment())
    network = build(name, image_size, num_classes, int8_stem=int8_stem)
    images = noise(TIMED_IMAGES, network.input_shape, seed=2)
    opened = [
        (candidate, session)
        for candidate in candidates(network, leave_out)
        if (session := open_checked(candidate, network, images[:CHECK_IMAGES], plan.threads, leave_out)) is not None
    ]
    started_at = utc_now()
    latencies = timed(opened, images, plan, console)
    return [
        _row(candidate, latency, plan, network.metadata, environment, started_at)
        for (candidate, _), latency in zip(opened, latencies, strict=True)
    ]


def timed(
    opened: Sequence[tuple[Candidate, Session]], images: Images, plan: BenchmarkPlan, console: Console | None
) -> list[NDArray[np.int64]]:
    """Nanoseconds of every run, [runs] for each of ``opened``, taken alternating between them."""
    contenders = []
    for candidate, session in opened:
        inputs = [session.prepare(images[i : i + 1]) for i in range(len(images))]
        if plan.threads > 1:
            contenders.append(Contender(f"before {candidate.name}", Rest(session), inputs))
        contenders.append(Contender(candidate.name, session, inputs))
    every = measure_latencies(contenders, plan.warmup, plan.runs, console)
    return every[1::2] if plan.threads > 1 else every


def _row(
    candidate: Candidate,
    latency: NDArray[np.int64],
    plan: BenchmarkPlan,
    metadata: dict[str, Any],
    environment: dict[str, Any],
    started_at: str,
) -> BenchmarkRow:
    q = quantiles(latency)
    method = metadata["method"] if candidate.form == "binary" else candidate.form
    stem = {"stem": {"precision": "int8"}} if candidate.codes else {}
    return BenchmarkRow(
        file=candidate.file,
        runtime=candidate.runtime,
        runtime_version=candidate.runtime_version,
        device="local",
        threads=plan.threads,
        input=INPUT,
        batch_size=1,
        warmup=plan.warmup,
        runs=plan.runs,
        p20_ms=q.p20_ms,
        p50_ms=q.p50_ms,
        p80_ms=q.p80_ms,
        images_per_s=1000 / q.p50_ms,
        top1=None,
        top1_images=0,
        peak_memory_bytes=None,
        file_bytes=candidate.file_bytes,
        metadata={**metadata, "method": method, **stem},
        environment=environment,
        started_at=started_at,
    )
