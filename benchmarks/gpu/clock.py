"""Clocks that measure how long a device is busy with a piece of work, whatever the host does meanwhile."""

from __future__ import annotations

from typing import Protocol

import torch

from bnnedge.benchmarks.turns import Clock, WallClock, Work

_FLUSH_BYTES = 256 * 2**20
"""More than the second-level cache of any GPU: writing so much leaves nothing of the operands in it."""


class DeviceClock(Clock, Protocol):
    """A clock that may want the work in another form."""

    def record(self, work: Work) -> Work:
        """``work`` in the form that is cheapest to start again, which is what ``seconds`` should be given."""
        ...


class CpuClock(WallClock):
    """The clock on the wall, for work on the CPU, which is done when its call returns."""

    def record(self, work: Work) -> Work:
        return work


class CudaClock:
    """Two CUDA events around the work, which finds none of its operands in the caches.

    A kernel of some microseconds takes less time than its launch, so the work is recorded as a CUDA graph first; work
    that cannot be recorded raises what CUDA says of it.
    """

    def __init__(self, device: torch.device, graphs: bool = True) -> None:
        """``graphs`` is False for work that cannot be recorded and takes long enough to hide its launches."""
        self._device, self._graphs = device, graphs
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)

    def record(self, work: Work) -> Work:
        if not self._graphs:
            return work
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(3):  # whatever is compiled or allocated at the first calls happens here
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


def clock_for(device: torch.device, graphs: bool = True) -> DeviceClock:
    """The clock of ``device``; ``graphs`` is as in ``CudaClock``."""
    return CudaClock(device, graphs) if device.type == "cuda" else CpuClock()
