"""The row of a GPU measurement, and what its environment says of the GPU."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bnnedge.benchmarks.environment import read_environment
from bnnedge.benchmarks.rows import Row


@dataclass(frozen=True, kw_only=True)
class GpuRow(Row):
    """One contender on one piece of work."""

    benchmark: str
    """gemm, conv, pack or step."""
    case: str
    """What is computed, such as ``8192 x 8192 x 8192`` or the name of a layer."""
    contender: str
    turns: int
    p20_us: float
    p50_us: float
    p80_us: float
    amount: float
    """How much one run does, in ``unit``."""
    unit: str
    """``ops`` (two for each multiply-add), ``bytes`` (read and written) or ``images``."""
    modelled_us: float | None
    """The time that the roofline of the GPU allows; None for a GPU or a contender that is not modelled."""
    peak_memory_bytes: int | None = None
    """What a training step adds to the allocator's peak; None for other work and on a CPU."""
    kept_bytes: int | None = None
    """Bytes that autograd keeps of the binary blocks between the forward and the backward pass of a training step; None
    for other work and where the step is compiled."""

    @property
    def rate(self) -> float:
        """``amount`` per second at the median."""
        return self.amount / self.p50_us * 1e6


def environment_of(device: torch.device) -> dict[str, Any]:
    """The machine, its software and, under ``gpu``, the GPU."""
    return {**asdict(read_environment()), "gpu": gpu(device) if device.type == "cuda" else None}


def gpu(device: torch.device) -> dict[str, Any]:
    """Name, compute capability, multiprocessors, memory, driver, clocks and CUDA's versions."""
    properties = torch.cuda.get_device_properties(device)
    asked = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        **dict(zip(asked, _nvidia_smi(device.index or 0, asked), strict=True)),
    }


def _nvidia_smi(index: int, fields: Sequence[str]) -> list[str | None]:
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return [None] * len(fields)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return [*values] if len(values) == len(fields) else [None] * len(fields)
