"""Measures a network: builds its forms, opens the deployments, checks their outputs and times them in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from rich.console import Console

from bnnedge.benchmarks.devices.device import BenchmarkSettings
from bnnedge.benchmarks.environment import read_environment, utc_now
from bnnedge.benchmarks.networks.deployments import CHECK_IMAGES, Deployment, deployments, open_checked
from bnnedge.benchmarks.networks.twins import build, noise
from bnnedge.benchmarks.rows import BenchmarkRow
from bnnedge.benchmarks.turns import Contender, Seconds, Work, quantiles, take_turns
from bnnedge.export.runtimes.runtime import Images, Session
from bnnedge.progress import Bar

INPUT = "random normal"
TIMED_IMAGES = 4
REST_S = 0.1
"""Helper threads of ONNX Runtime go on spinning for 30 ms after a run, those of PyTorch for 10 (seen on Zen 4)."""
WAKE_S = 0.02
"""Running time after a pause: with one run LiteRT's twins on two threads were as slow as on one (seen on Linux)."""


def measure(
    name: str,
    image_size: int,
    num_classes: int,
    settings: BenchmarkSettings,
    leave_out: Callable[[str], None],
    console: Console | None = None,
    int8_stem: bool = False,
) -> list[BenchmarkRow]:
    """One row a deployment, ours first. Raises a ``BnnedgeError`` if one of ours fails or gives a wrong result."""
    # Read first: afterwards the load average would be this benchmark's own.
    environment = asdict(read_environment())
    network = build(name, image_size, num_classes, int8_stem=int8_stem)
    images = noise(TIMED_IMAGES, network.input_shape, seed=2)
    opened = [
        (deployment, session)
        for deployment in deployments(network, leave_out)
        if (session := open_checked(deployment, network, images[:CHECK_IMAGES], settings.threads, leave_out))
        is not None
    ]
    started_at = utc_now()
    return [
        _row(deployment, seconds, settings, network.metadata, environment, started_at)
        for (deployment, _), seconds in zip(opened, timed(opened, images, settings, console), strict=True)
    ]


def timed(
    opened: Sequence[tuple[Deployment, Session]], images: Images, settings: BenchmarkSettings, console: Console | None
) -> list[Seconds]:
    """Seconds of every run, [runs] for each of ``opened``, which take turns."""
    contenders = []
    for deployment, session in opened:
        works = [partial(session.invoke, session.prepare(images[i : i + 1])) for i in range(len(images))]
        before = partial(rest_and_wake, works[0]) if settings.threads > 1 else None
        contenders.append(Contender(deployment.name, works, before))
    with Bar(console) as bar:
        return take_turns(contenders, settings.runs, settings.warmup, report=bar)


def rest_and_wake(work: Work) -> None:
    """Pause until the helper threads of others are asleep, then do ``work`` until its own threads are awake.

    With several threads this stands before each timed run. ONNX Runtime could be told to stop spinning at the end of a
    run, but that makes its own runs slower, and peers are measured at their best.
    """
    time.sleep(REST_S)
    started = time.perf_counter()
    work()
    while time.perf_counter() - started < WAKE_S:
        work()


def _row(
    deployment: Deployment,
    seconds: Seconds,
    settings: BenchmarkSettings,
    metadata: dict[str, Any],
    environment: dict[str, Any],
    started_at: str,
) -> BenchmarkRow:
    ms = quantiles(seconds * 1e3)
    method = metadata["method"] if deployment.form == "binary" else deployment.form
    stem = {"stem": {"precision": "int8"}} if deployment.codes else {}
    return BenchmarkRow(
        file=deployment.file,
        runtime=deployment.runtime,
        runtime_version=deployment.runtime_version,
        device="local",
        threads=settings.threads,
        input=INPUT,
        batch_size=1,
        warmup=settings.warmup,
        runs=settings.runs,
        p20_ms=ms.p20,
        p50_ms=ms.p50,
        p80_ms=ms.p80,
        images_per_s=1000 / ms.p50,
        task=metadata.get("task"),
        scores={},
        samples=0,
        peak_memory_bytes=None,
        file_bytes=deployment.file_bytes,
        metadata={**metadata, "method": method, **stem},
        environment=environment,
        started_at=started_at,
    )
