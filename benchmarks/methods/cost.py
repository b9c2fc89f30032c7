"""Time and memory of one training step of each method, beside plain PyTorch STE on the same network.

Times are taken in turns in one process. Memory is what training adds to a fresh process that has taken one step of the
same on two images: on a GPU by the allocator's peak, on a CPU by that of resident memory
(``bnnedge/benchmarks/memory.py``).
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
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from bnnedge.benchmarks.environment import read_environment
from bnnedge.benchmarks.memory import restart_peak, status_bytes
from bnnedge.benchmarks.methods.plain_ste import PlainSteTraining
from bnnedge.benchmarks.rows import Row
from bnnedge.benchmarks.turns import Contender, Work, quantiles, take_turns
from bnnedge.config import RunConfig
from bnnedge.data.dataset import Dataset, prepare
from bnnedge.data.source import source_of_tensors
from bnnedge.errors import BenchmarkError
from bnnedge.methods import METHODS
from bnnedge.models.create import create_model
from bnnedge.progress import Bar
from bnnedge.train.assemble import make_state
from bnnedge.train.resolve import resolve
from bnnedge.train.step import train_step

PEER = "pytorch ste"
CLASSES = 10
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

    def batch(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] of noise and their labels."""
        shape = (self.batch_size, 3, self.image_size, self.image_size)
        images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        labels = torch.arange(self.batch_size) % CLASSES
        return torch.from_numpy(images).to(device), labels.to(device)


@dataclass(frozen=True, kw_only=True)
class CostRow(Row):
    """The cost of one contender's training step."""

    contender: str
    """``pytorch ste``, ``METHOD`` or ``METHOD/PHASE``."""
    passes: int
    """Forward and backward passes in a step."""
    p20_ms: float
    p50_ms: float
    p80_ms: float
    time_ratio: float | None
    """Median over the turns of its time over the peer's in the same turn; None without the peer."""
    epoch_ms: float
    """Milliseconds of what the method does once before an epoch."""
    memory_bytes: int | None
    """What training adds to a process; None where the system cannot tell."""
    setting: dict[str, Any]
    """The fields of ``Setting``."""

    format_version: ClassVar[int] = 1

    @classmethod
    def upgraded(cls, record: dict[str, Any], version: Any) -> dict[str, Any]:
        """Rows written before version 1 have the same fields and no version."""
        return record if version is None else super().upgraded(record, version)


@dataclass(frozen=True)
class Training:
    """One way to train, ready for its next step."""

    label: str
    step: Step
    passes: int = 1
    epoch_ms: float = 0.0

    def work(self, setting: Setting) -> Work:
        """One step on the batch of ``setting``, until the device is done with it."""
        device = torch.device(setting.device)
        images, labels = setting.batch(device)

        def work() -> None:
            self.step(images, labels)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return work


def labels(methods: Sequence[str]) -> list[str]:
    """The contenders' labels: the peer, and each phase of each method."""
    found = [PEER]
    for name in methods:
        method = METHODS.load(name)
        phases = method(method.Options()).phases(60)
        found += [name] if len(phases) == 1 else [f"{name}/{phase.name}" for phase in phases]
    return found


def make_training(label: str, setting: Setting) -> Training:
    """The training called ``label``, ready for its first step."""
    torch.manual_seed(0)
    torch.set_num_threads(setting.threads)
    device = torch.device(setting.device)
    if label == PEER:
        model = create_model(setting.model, num_classes=CLASSES, in_channels=3, image_size=setting.image_size)
        return Training(label, PlainSteTraining(model, device).step)
    name, _, phase = label.partition("/")
    config = resolve(RunConfig(method=name, model=setting.model, batch_size=setting.batch_size, epochs=60,
                               device=setting.device, threads=setting.threads))  # type: ignore[arg-type] # fmt: skip
    state = make_state(config, noise(setting.image_size, CLASSES))
    if phase:
        state.enter_phase([p.name for p in state.phases].index(phase))
    state.model.train()
    started = time.perf_counter()
    state.method.start_epoch(state.model, 0, state.phase.epochs)
    epoch_ms = 1e3 * (time.perf_counter() - started)
    return Training(label, lambda x, y: train_step(state, x, y), state.method.passes, epoch_ms)


def measure(
    chosen: Sequence[str], setting: Setting, warmup: int, runs: int, console: Console | None = None
) -> list[CostRow]:
    """One row for each of ``chosen``, which are among ``labels``; times in turns, memory in one process each."""
    trainings = [make_training(label, setting) for label in chosen]
    contenders = [Contender(training.label, [training.work(setting)]) for training in trainings]
    with Bar(console) as bar:
        measured = take_turns(contenders, runs, warmup, report=bar)
    environment = asdict(read_environment())
    rows = []
    for training, seconds in zip(trainings, measured, strict=True):
        ms = quantiles(seconds * 1e3)
        row = CostRow(
            contender=training.label,
            passes=training.passes,
            p20_ms=ms.p20,
            p50_ms=ms.p50,
            p80_ms=ms.p80,
            time_ratio=None if PEER not in chosen else float(np.median(seconds / measured[chosen.index(PEER)])),
            epoch_ms=training.epoch_ms,
            memory_bytes=_memory_bytes(training.label, setting),
            setting=asdict(setting),
            environment=environment,
        )
        rows.append(row)
    return rows


def noise(image_size: int, num_classes: int) -> Dataset:
    """A data set of random pixels that has just what a training state needs of one: its shapes and its classes."""
    raw = torch.rand(20, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    split = (raw, torch.arange(20) % num_classes)
    names = tuple(map(str, range(num_classes)))
    return prepare(source_of_tensors("noise", names, {"train": split, "val": split, "test": split}, scale=1.0))


def _memory_bytes(label: str, setting: Setting) -> int | None:
    command = [sys.executable, "-m", __name__, json.dumps([label, asdict(setting)])]
    # With glibc every tensor gets a mapping of its own, so that what is freed leaves the resident memory at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(64 * 1024), "MALLOC_MMAP_MAX_": str(2**20)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise BenchmarkError(f"measuring the memory of {label} failed: {why}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _measure_memory_here(label: str, setting: Setting) -> int | None:
    device = torch.device(setting.device)
    images, targets = setting.batch(device)
    # A first step of the same on two images: the memory of the code itself is not counted.
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
