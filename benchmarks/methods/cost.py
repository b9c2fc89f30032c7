"""Time and memory of one training step of each method, as ratios to plain PyTorch STE on the same network.

Times are taken in turns in one process. Memory is what training adds to a fresh process that has taken one step of the
same on two images: on a GPU the allocator's peak, on a CPU that of resident memory (``bnnedge/benchmarks/memory.py``).
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnnedge.benchmarks.environment import read_environment
from bnnedge.benchmarks.memory import restart_peak, status_bytes
from bnnedge.benchmarks.methods.plain_ste import PlainSteTraining
from bnnedge.benchmarks.runner import Contender, measure_latencies, quantiles
from bnnedge.config import RunConfig
from bnnedge.data.dataset import Dataset, MemoryDataset
from bnnedge.errors import BenchmarkError
from bnnedge.export.runtimes.runtime import Images, Session
from bnnedge.methods import METHODS
from bnnedge.models.create import create_model
from bnnedge.train.assemble import make_state
from bnnedge.train.loop import train_step
from bnnedge.train.resolve import resolve

PEER = "pytorch ste"
TIME_LIMIT = 1.15
MEMORY_LIMIT = 1.0
REASONS = {
    "rbnn": "it standardizes every input and every filter, and rotates the weights forward and their gradient back "
    "in each step. The rotations are 2 (a + b) operations for each weight of filters of a x b, 5.2 GFLOP whatever the "
    "batch, where the binary convolutions of a batch of 32 take 106. Of what it adds to plain STE's step they are "
    "about a third; half is the standardization of 11 million weights with its gradient and those of alpha and beta, "
    "the rest that of the inputs. In memory the rotated weights, kept for the gradient, are as large as Adam's second "
    "moment, which its SGD has not. Before an epoch it learns the rotations",
    "bayesbinn": "it draws a random number for each weight in each step",
}
"""Contender to why its algorithm needs more than plain STE does."""
MEMORY_STEPS = 3
Step = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class Setting:
    """What every contender trains on."""

    model: str
    image_size: int
    batch_size: int
    device: str
    threads: int


@dataclass(frozen=True)
class CostRow:
    """One contender; one JSON line."""

    contender: str
    """``pytorch ste``, or ``method`` or ``method/phase``."""
    passes: int
    """Forward and backward passes in a step."""
    p20_ms: float
    p50_ms: float
    p80_ms: float
    time_ratio: float | None
    """Median over the turns of its time over the peer's in the same turn; None without the peer."""
    epoch_ms: float
    """What the method does once before an epoch."""
    memory_bytes: int | None
    setting: dict[str, Any]
    environment: dict[str, Any]


@dataclass(frozen=True)
class _Training:
    label: str
    step: Step
    passes: int = 1
    epoch_ms: float = 0.0


class _StepSession(Session):
    """A training step as something that the runner can time."""

    def __init__(self, step: Step, device: torch.device) -> None:
        self._step, self._device = step, device

    def prepare(self, images: Images) -> tuple[Tensor, Tensor]:
        labels = torch.arange(len(images)) % 10
        return torch.from_numpy(images).to(self._device), labels.to(self._device)

    def invoke(self, prepared: tuple[Tensor, Tensor]) -> NDArray[np.float32]:
        self._step(*prepared)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return np.zeros(0, np.float32)


def labels(methods: Sequence[str]) -> list[str]:
    """The contenders: the peer, and each phase of each method."""
    found = [PEER]
    for name in methods:
        method = METHODS.load(name)
        phases = method(method.Options()).phases(60)
        found += [name] if len(phases) == 1 else [f"{name}/{phase.name}" for phase in phases]
    return found


def make_training(label: str, setting: Setting) -> _Training:
    """The contender called ``label``, ready for its first step."""
    torch.manual_seed(0)
    torch.set_num_threads(setting.threads)
    device = torch.device(setting.device)
    if label == PEER:
        model = create_model(setting.model, num_classes=10, in_channels=3, image_size=setting.image_size)
        return _Training(label, PlainSteTraining(model, device).step)
    name, _, phase = label.partition("/")
    config = resolve(RunConfig(method=name, model=setting.model, batch_size=setting.batch_size, epochs=60,
                               device=setting.device, threads=setting.threads))  # type: ignore[arg-type] # fmt: skip
    state = make_state(config, noise(setting.image_size, 10))
    if phase:
        state.enter_phase([p.name for p in state.phases].index(phase))
    state.model.train()
    started = time.perf_counter()
    state.method.start_epoch(state.model, 0, state.phase.epochs)
    epoch_ms = 1e3 * (time.perf_counter() - started)
    return _Training(label, lambda x, y: train_step(state, x, y), state.method.passes, epoch_ms)


def measure(chosen: Sequence[str], setting: Setting, warmup: int, runs: int) -> list[CostRow]:
    """One row for each of ``chosen``, which are names of ``labels``; times in turns, memory one process each."""
    random = np.random.default_rng(0)
    images = random.standard_normal((setting.batch_size, 3, setting.image_size, setting.image_size)).astype(np.float32)
    trainings = [make_training(label, setting) for label in chosen]
    contenders = []
    for training in trainings:
        session = _StepSession(training.step, torch.device(setting.device))
        contenders.append(Contender(training.label, session, [session.prepare(images)]))
    latencies = measure_latencies(contenders, warmup, runs)
    environment = asdict(read_environment())
    return [
        CostRow(
            contender=training.label,
            passes=training.passes,
            **asdict(quantiles(times)),
            time_ratio=None if PEER not in chosen else float(np.median(times / latencies[chosen.index(PEER)])),
            epoch_ms=training.epoch_ms,
            memory_bytes=_memory_bytes(training.label, setting),
            setting=asdict(setting),
            environment=environment,
        )
        for training, times in zip(trainings, latencies, strict=True)
    ]


def table(rows: Sequence[CostRow]) -> str:
    """Markdown, with ratios to the peer, which is one of ``rows``."""
    peer = next((row for row in rows if row.contender == PEER), None)
    if peer is None:
        raise BenchmarkError(f"a table of costs needs a row of {PEER}")
    lines = ["| | passes | step, ms (p20, p80) | time | memory, MiB | memory | before an epoch, ms |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        memory, share = "", ""
        if row.memory_bytes is not None and peer.memory_bytes:
            memory, share = f"{row.memory_bytes / 2**20:.0f}", f"{row.memory_bytes / peer.memory_bytes:.2f}"
        step = f"{row.p50_ms:.1f} ({row.p20_ms:.1f}, {row.p80_ms:.1f})"
        cells = (
            row.contender,
            row.passes,
            step,
            f"{row.time_ratio:.2f}",
            memory,
            share,
            f"{row.epoch_ms:.0f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def report(rows: Sequence[CostRow], command: str) -> str:
    """The Markdown file of what ``command`` measured: machine, table, and why some rows are above the limits."""
    environment, setting = rows[0].environment, Setting(**rows[0].setting)
    what = f"{TIME_LIMIT} times the time or {MEMORY_LIMIT} times the memory of plain STE"
    over = _over_the_limits(rows)
    reasons = [f"- {label}, {ratios}: {REASONS.get(label, 'not known')}." for label, ratios in over.items()]
    paragraphs = [
        "# One training step of each method",
        f"Made by `{command}`.",
        f"{caption(setting)}: {environment['cpu']}, torch {environment['versions']['torch']}, "
        f"{environment['date_utc'][:10]}. Ratios of time are to plain PyTorch STE in the same turn, in the median. "
        "Memory is what training adds to a process that has taken a step on two images: weights, optimizer, gradients "
        "and what is kept between forward and backward.",
        table(rows).rstrip(),
        f"Above {what}, and why:" if over else f"None takes above {what}.",
    ]
    return "\n\n".join([*paragraphs, "\n".join(reasons)]).rstrip() + "\n"


def caption(setting: Setting) -> str:
    """The setting in words."""
    return (
        f"{setting.model}, {setting.image_size}x{setting.image_size}, batch {setting.batch_size}, {setting.device}, "
        f"{setting.threads} thread{'s' * (setting.threads > 1)}"
    )


def _over_the_limits(rows: Sequence[CostRow]) -> dict[str, str]:
    """Label to what of a row is above the limits, as the table rounds it."""
    peer = next(row for row in rows if row.contender == PEER)
    found = {}
    for row in rows:
        ratio = round(row.time_ratio or 0.0, 2)
        what = [f"time {ratio}"] if ratio > TIME_LIMIT else []
        if row.memory_bytes is not None and peer.memory_bytes:
            ratio = round(row.memory_bytes / peer.memory_bytes, 2)
            what += [f"memory {ratio}"] if ratio > MEMORY_LIMIT else []
        if what:
            found[row.contender] = " and ".join(what)
    return found


def noise(image_size: int, num_classes: int) -> Dataset:
    """Just enough of a data set for a training state: its shapes and its number of classes."""
    raw = torch.rand(20, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    split = (raw, torch.arange(20) % num_classes)
    names = tuple(map(str, range(num_classes)))
    return MemoryDataset("noise", names, {"train": split, "val": split, "test": split}, lambda x, generator: x)


def _memory_bytes(label: str, setting: Setting) -> int | None:
    command = [sys.executable, "-m", __name__, json.dumps([label, asdict(setting)])]
    # Every tensor a mapping of its own (glibc): what is freed leaves the resident memory at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(64 * 1024), "MALLOC_MMAP_MAX_": str(2**20)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise BenchmarkError(f"measuring the memory of {label} failed: {why}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _measure_memory_here(label: str, setting: Setting) -> int | None:
    device = torch.device(setting.device)
    images = torch.randn(setting.batch_size, 3, setting.image_size, setting.image_size, device=device)
    targets = torch.arange(setting.batch_size, device=device) % 10
    # What the code itself takes stays out of it.
    make_training(label, dataclasses.replace(setting, batch_size=2)).step(images[:2], targets[:2])
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    elif sys.platform == "linux":
        before = restart_peak()
    else:
        return None
    training = make_training(label, setting)
    for _ in range(MEMORY_STEPS):
        training.step(images, targets)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else status_bytes("VmHWM")
    return peak - before


if __name__ == "__main__":
    name, values = json.loads(sys.argv[1])
    print(json.dumps(_measure_memory_here(name, Setting(**values))))
