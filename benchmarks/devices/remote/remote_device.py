"""A device that is reached through its agent; how to reach it is up to the entries of DEVICES."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from bnnedge import __version__
from bnnedge.benchmarks.devices.device import BenchmarkInput, BenchmarkSettings, Device, ModelFile
from bnnedge.benchmarks.devices.remote.connection import Connection
from bnnedge.benchmarks.devices.remote.protocol import HELLO, PROTOCOL, MeasureRequest, Message, Terminal
from bnnedge.benchmarks.rows import BenchmarkRow
from bnnedge.errors import BenchmarkError, MissingDependencyError

_GREETING_BYTES = 65536
"""The most that a login shell may say before the agent does."""


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
        reason: str | None = self._ask(Message({"unavailable": runtime})).header["reason"]
        return reason if reason is None else f"on {self._address}: {reason}"

    def measure(
        self,
        files: Sequence[ModelFile],
        data: BenchmarkInput,
        settings: BenchmarkSettings,
        console: Console | None = None,
    ) -> list[BenchmarkRow]:
        console = console or Console(stderr=True)
        terminal = Terminal(os.environ.get("TERM", "xterm"), console.width) if console.is_terminal else None
        answer = self._ask(MeasureRequest(files, data, settings, terminal).to_message(), console)
        return [replace(BenchmarkRow.from_json(row), device=self._address) for row in answer.header["rows"]]

    def _greet(self) -> None:
        read = 0
        while line := self._connection.read_line(_GREETING_BYTES):
            read += len(line)
            hello = _hello(line)
            if hello is not None:
                if hello[HELLO] != PROTOCOL:
                    raise MissingDependencyError(
                        f"{self._address} has bnnedge {hello.get('version')} with protocol {hello[HELLO]}, "
                        f"this machine {__version__} with protocol {PROTOCOL}; install the same version on both"
                    )
                self._connection.show_errors()
                return
            if read > _GREETING_BYTES:
                break
        raise MissingDependencyError(self.why_no_agent(*self._connection.end()))

    def _ask(self, request: Message, console: Console | None = None) -> Message:
        try:
            self._connection.send(request, console)
            answer = self._connection.receive()
        except (BrokenPipeError, EOFError):
            answer = None
        except ValueError as error:
            raise BenchmarkError(f"{self._address} does not answer as bnnedge's agent does: {error}") from error
        if answer is None:
            said = self._connection.end()[1]
            raise BenchmarkError(f"the connection to {self._address} ended before the answer came: {said}")
        if "error" in answer.header:
            raise BenchmarkError(f"on {self._address}: {answer.header['error']}")
        return answer


def _hello(line: bytes) -> dict[str, Any] | None:
    """The agent's greeting, or None for any other line."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and HELLO in said else None
