"""A file in a runtime in a process of its own, so that whatever happens there is an error here.

``python -c`` runs ``main``, which answers the requests of one ``IsolatedFile``.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ExportError, MissingDependencyError, printable
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.runtimes.child import Child, Limits, Parent, limit_memory, within
from bnnedge.export.runtimes.runtime import FileSession, Inputs, Outputs
from bnnedge.export.targets.target import LayerRow, target_of

if TYPE_CHECKING:
    from typing_extensions import Self


class IsolatedFile:
    """An exported file in a process of its own, which starts at once and works while the caller does other things.

    ``batch_bytes`` is the size of the batches that will be run. Every method raises ``ExportError`` naming the file if
    the process dies or takes too long; ``with`` ends the process.
    """

    def __init__(self, label: str, data: bytes, batch_bytes: int, threads: int = 1) -> None:
        self._label = printable(label)
        limits = Limits.of(len(data), batch_bytes, threads)
        self._child = Child(__name__, limits, f"{self._label}: starting")
        self._threads = threads
        self._child.send(("file", data, limits))

    def describe(self) -> list[LayerRow]:
        """The rows of the file's table, as ``Target.describe`` reads them."""
        answer = self._ask("reading", "describe", Path(self._label).suffix)[0]
        shapes = ("input_shape", "output_shape")
        return [LayerRow(**{**row, **{key: tuple(row[key]) for key in shapes}}) for row in answer["rows"]]

    def load(self, runtime: str) -> IsolatedSession:
        """Load the file into ``runtime``, a name in RUNTIMES, without waiting for it."""
        self._child.doing = f"{self._label}: {runtime} loading it"
        self._child.send(("load", runtime, self._threads))
        return IsolatedSession(self, runtime)

    def loaded(self) -> dict[str, Any]:
        """Wait until the file is loaded."""
        try:
            return self._child.receive()[0]
        except ExportError as error:
            raise self._named(error) from error

    def run(self, runtime: str, inputs: dict[str, NDArray[np.float32]]) -> Outputs:
        return self._ask(f"{runtime} running it", "run", inputs)[1]

    def _ask(self, doing: str, *request: Any) -> tuple[dict[str, Any], Outputs]:
        self._child.doing = f"{self._label}: {doing}"
        try:
            return self._child.ask(request)
        except ExportError as error:
            raise self._named(error) from error

    def _named(self, error: ExportError) -> ExportError:
        return error if str(error).startswith(self._label) else ExportError(f"{self._label}: {error}")

    def close(self) -> None:
        self._child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class IsolatedSession(FileSession):
    """A ``FileSession`` whose runtime is in another process. It waits for the file when it is first asked."""

    def __init__(self, file: IsolatedFile, runtime: str) -> None:
        self._file, self._runtime = file, runtime
        self._names: dict[str, Any] | None = None

    def _loaded(self) -> dict[str, Any]:
        if self._names is None:
            self._names = self._file.loaded()
        return self._names

    @property
    def input_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self._loaded()["inputs"])

    @property
    def output_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self._loaded()["outputs"])

    def prepare(self, images: Inputs) -> dict[str, NDArray[np.float32]]:
        return {name: np.asarray(values, np.float32) for name, values in self.inputs_of(images).items()}

    def invoke_all(self, prepared: dict[str, NDArray[np.float32]]) -> Outputs:
        return self._file.run(self._runtime, prepared)


def main() -> None:
    """Answer an ``IsolatedFile`` until it closes."""
    parent = Parent()
    requests = parent.requests()
    _, data, limits = next(requests)
    limit_memory(limits.memory_bytes)
    session: FileSession | None = None
    for name, *arguments in requests:
        with parent.answering():
            if name == "describe":
                with within(limits.load_s):
                    rows = target_of(Path(f"file{arguments[0]}")).describe(data)
                parent.send({"rows": [asdict(row) for row in rows]})
            elif name == "load":
                runtime, threads = arguments
                with within(limits.load_s):
                    session = RUNTIMES.load(runtime).open(data, threads)
                parent.send({"inputs": session.input_names, "outputs": session.output_names})
            else:
                if session is None:
                    raise MissingDependencyError("the file is not loaded")
                with within(limits.run_s):
                    outputs = session.run_all(arguments[0])
                parent.send({}, {name: np.asarray(values) for name, values in outputs.items()})
