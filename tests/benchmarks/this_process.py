"""A ``LocalDevice.measure`` that knows the tasks, networks and runtimes which a test has registered."""

from __future__ import annotations

from typing import Any

from bnnedge.benchmarks.devices.local import LocalDevice
from bnnedge.benchmarks.devices.measuring import Measuring, measure_here
from bnnedge.benchmarks.rows import BenchmarkRow


def measure_in_this_process(
    device: LocalDevice, files: Any, data: Any, settings: Any, report: object = None
) -> list[BenchmarkRow]:
    """Another process would not know what is registered in this one alone."""
    return measure_here(Measuring.of(files, data, settings), lambda doing: None)
