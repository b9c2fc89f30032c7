"""A device that is reached through its agent; how to reach it is up to the entries of DEVICES."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, TypeVar

from pydantic import Field
from typing_extensions import TypedDict

from bnnedge import __version__
from bnnedge.benchmarks.devices.device import BenchmarkInput, BenchmarkSettings, Device, ModelFile
from bnnedge.benchmarks.devices.remote.connection import Connection
from bnnedge.benchmarks.devices.remote.protocol import (
    ALIVE,
    ALIVE_EVERY_S,
    HELLO,
    PROGRESS,
    PROTOCOL,
    MeasureRequest,
    Message,
)
from bnnedge.benchmarks.rows import BenchmarkRow
from bnnedge.errors import BenchmarkError, MissingDependencyError, printable
from bnnedge.progress import Report
from bnnedge.schema import check, read_json

_GREETING_BYTES = 65536
"""The most that a login shell may say before the agent does."""
_GREETING_S = 60
"""Time to log in, and for the agent to start."""
_ANSWER_S = 6 * ALIVE_EVERY_S
"""Time without a sign of life from an agent that works on its answer."""
_LONGEST_S = 24 * 3600
_REPORT_EVERY_S = 0.1


class _Reason(TypedDict):
    reason: Annotated[str, Field(max_length=10_000)] | None


class _Rows(TypedDict):
    rows: list[str]


class _Error(TypedDict):
    error: str


class _Progress(TypedDict):
    progress: tuple[str, int, int]


A = TypeVar("A")


class RemoteDevice(Device):
    """A machine on which the agent runs."""

    def __init__(self, address: str, command: Sequence[str]) -> None:
        """Start the agent of the device called ``address`` by ``command`` and wait for its greeting.

        Raises ``MissingDependencyError`` if there is none, or one of another protocol.
        """
        self._address = address
        self._connection = Connection(command)
        try:
            self._greet()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def why_no_agent(self, code: int, said: str) -> str:
        """One sentence: why ``command``, which ended with exit code ``code`` and the error line ``said``, started no
        agent, and what to do."""

    def close(self) -> None:
        self._connection.close()

    def unavailable(self, runtime: str) -> str | None:
        reason = self._ask(Message({"unavailable": runtime}), _Reason)["reason"]
        return reason if reason is None else f"on {self._address}: {printable(reason)}"

    def measure(
        self,
        files: Sequence[ModelFile],
        data: BenchmarkInput,
        settings: BenchmarkSettings,
        report: Report | None = None,
    ) -> list[BenchmarkRow]:
        answer = self._ask(MeasureRequest(files, data, settings).to_message(), _Rows, report)
        try:
            rows = [BenchmarkRow.from_json(line) for line in answer["rows"]]
        except BenchmarkError as error:
            raise self._nonsense(error) from error
        asked = [(file.label, file.runtime, len(file.data), settings.threads, settings.runs) for file in files]
        found = [(row.file, row.runtime, row.file_bytes, row.threads, row.runs) for row in rows]
        if found != asked:
            raise self._nonsense(
                f"expected one row for each file as it was sent, found {len(rows)} rows of other files"
            )
        return [replace(row, device=self._address) for row in rows]

    def _nonsense(self, what: object) -> BenchmarkError:
        return BenchmarkError(f"{self._address} does not answer as bnnedge's agent does: {what}")

    def _greet(self) -> None:
        try:
            with self._connection.within(_GREETING_S):
                hello = self._read_hello()
        except TimeoutError:
            self._connection.end()
            raise MissingDependencyError(
                f"{self._address} did not start bnnedge's agent within {_GREETING_S} s; log in once by hand to see why"
            ) from None
        if hello is None:
            raise MissingDependencyError(self.why_no_agent(*self._connection.end()))
        if hello[HELLO] != PROTOCOL:
            version, protocol = printable(str(hello.get("version")), 50), printable(str(hello[HELLO]), 50)
            raise MissingDependencyError(
                f"{self._address} has bnnedge {version} with protocol {protocol}, "
                f"this machine {__version__} with protocol {PROTOCOL}; install the same version on both"
            )

    def _read_hello(self) -> dict[str, Any] | None:
        """The agent's greeting, behind whatever the login shell says first; None if there is none."""
        read = 0
        while read <= _GREETING_BYTES and (line := self._connection.read_line(_GREETING_BYTES)):
            read += len(line)
            if (hello := _hello(line)) is not None:
                return hello
        return None

    def _ask(self, request: Message, answer: type[A], report: Report | None = None) -> A:
        """Send a request and wait for its answer, a mapping as the TypedDict ``answer`` describes it."""
        message = None
        try:
            self._connection.send(request, report)
            message = self._wait(report)
        except (BrokenPipeError, EOFError):
            pass
        except TimeoutError as error:
            self._connection.end()
            raise BenchmarkError(f"{self._address} {str(error) or f'gave no sign of life for {_ANSWER_S} s'}") from None
        except BenchmarkError as error:
            raise self._nonsense(error) from error
        if message is None:
            said = self._connection.end()[1]
            raise BenchmarkError(f"the connection to {self._address} ended before the answer came: {said}")
        if "error" in message.header:
            refused = check(message.header, _Error, "an error", BenchmarkError)
            raise BenchmarkError(f"on {self._address}: {printable(refused['error'], most=1000)}")
        try:
            return check(message.header, answer, "an answer", BenchmarkError)
        except BenchmarkError as error:
            raise self._nonsense(error) from error

    def _wait(self, report: Report | None) -> Message | None:
        """The answer, for which an agent may take long while it says that it is alive."""
        shown, longest = 0.0, time.monotonic() + _LONGEST_S
        while time.monotonic() < longest:
            with self._connection.within(_ANSWER_S):
                message = self._connection.receive()
            if message is None or not {ALIVE, PROGRESS} & set(message.header):
                return message
            if report is not None and PROGRESS in message.header and time.monotonic() > shown + _REPORT_EVERY_S:
                report(*_progress(message))
                shown = time.monotonic()
        raise TimeoutError(f"gave no answer within {_LONGEST_S // 3600} hours")


def _progress(message: Message) -> tuple[str, int, int]:
    what, done, total = check(message.header, _Progress, "progress", BenchmarkError)["progress"]
    return printable(what), done, total


def _hello(line: bytes) -> dict[str, Any] | None:
    """The agent's greeting, or None for any other line."""
    try:
        said = read_json(line, "a greeting", BenchmarkError)
    except BenchmarkError:
        return None
    return said if isinstance(said, dict) and HELLO in said else None
