"""Clocks: how long a piece of work takes on its device, apart from what the host does meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

Work = Callable[[], object]
_FLUSH_BYTES = 256 * 2**20
"""More than the second-level cache of any GPU: writing so much leaves nothing of the operands in it."""


class Clock(Protocol):
    """Times one piece of work."""

    def record(self, work: Work) -> Work:
        """``work`` in the form that is cheapest to start again, which is what ``seconds`` should be given."""
        ...

    def seconds(self, work: Work) -> float:
        """Seconds that the device is busy with ``work``, operands not in its caches."""
        ...


class WallClock:
    """For work on the CPU."""

    def record(self, work: Work) -> Work:
        return work

    def seconds(self, work: Work) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started


class CudaClock:
    """Two events around the work. Kernels of some microseconds are shorter than their launch, so work is recorded as a
    CUDA graph first; work that cannot be recorded raises what CUDA says of it."""

    def __init__(self, device: torch.device, graphs: bool = True) -> None:
        """``graphs`` False for work that cannot be recorded, and is long enough to hide its launches."""
        self._device, self._graphs = device, graphs
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)

    def record(self, work: Work) -> Work:
        if not self._graphs:
            return work
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(3):  # whatever compiles or allocates does it here
                work()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

    def seconds(self, work: Work) -> float:
        self._flush.zero_()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        work()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3


def clock_for(device: torch.device, graphs: bool = True) -> Clock:
    """The clock of ``device``; ``graphs`` as in ``CudaClock``."""
    return CudaClock(device, graphs) if device.type == "cuda" else WallClock()
