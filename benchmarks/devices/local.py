"""The machine that bnnedge runs on."""

from __future__ import annotations

import json
from collections.abc import Sequence

from bnnedge.benchmarks.devices import measuring
from bnnedge.benchmarks.devices.device import BenchmarkInput, BenchmarkSettings, Device, ModelFile
from bnnedge.benchmarks.devices.measuring import LOCAL, Measuring
from bnnedge.benchmarks.rows import BenchmarkRow
from bnnedge.errors import BenchmarkError
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.runtimes.child import Child
from bnnedge.progress import Report


class LocalDevice(Device):
    """Measures in a process of its own, so that a file on which a runtime crashes or hangs is an error here."""

    name = LOCAL

    @classmethod
    def open(cls, address: str) -> LocalDevice:
        if address:
            raise BenchmarkError(f"device {LOCAL} is this machine and has no address, found {address!r}")
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
        report: Report | None = None,
    ) -> list[BenchmarkRow]:
        request = Measuring.of(files, data, settings)
        with Child(measuring.__name__, request.limits, f"{files[0].label}: starting", report) as child:
            child.send(request)
            rows = child.receive()[0]["rows"]
        return [BenchmarkRow.from_json(json.dumps(row)) for row in rows]
