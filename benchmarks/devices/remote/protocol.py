"""The messages between ``bnnedge bench`` and the agent on a device.

A message is one line of JSON, and then as many bytes as its ``payloads`` add up to, which are cut into these. First the
agent says ``{"bnnedge_agent": PROTOCOL, "version": ..}``; what comes before that line is the greeting of a shell. Then
each request has one answer, which is ``{"error": sentence}`` if the request cannot be met:

    {"unavailable": runtime}                                                     -> {"reason": sentence or null}
    {"measure": {"files", "input", "settings", "terminal"}} and a payload a file,
        one for the images and one for the targets if there are any              -> {"rows": [BenchmarkRow's JSON ..]}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.benchmarks.devices.device import BenchmarkInput, BenchmarkSettings, ModelFile
from bnnedge.data.info import DatasetInfo

PROTOCOL = 2
"""Raised when messages change their meaning."""
HELLO = "bnnedge_agent"


@dataclass(frozen=True)
class Message:
    """A header and the bytes that come with it."""

    header: dict[str, Any]
    payloads: Sequence[bytes] = ()


@dataclass(frozen=True)
class Terminal:
    """The terminal that progress is drawn on."""

    term: str
    """The kind of terminal, which is the value of the variable TERM."""
    width: int
    """The width of the terminal in characters."""


@dataclass(frozen=True)
class MeasureRequest:
    """What a device is asked to measure."""

    files: Sequence[ModelFile]
    data: BenchmarkInput
    settings: BenchmarkSettings
    terminal: Terminal | None
    """None if progress is not to be drawn."""

    def to_message(self) -> Message:
        """The request as it is sent."""
        arrays = [self.data.images] + ([] if self.data.targets is None else [self.data.targets])
        header = {
            "files": [{name: value for name, value in asdict(f).items() if name != "data"} for f in self.files],
            "input": {
                "name": self.data.name,
                "info": None if self.data.info is None else self.data.info.to_dict(),
                "arrays": [{"dtype": _little_endian(array).str, "shape": array.shape} for array in arrays],
            },
            "settings": asdict(self.settings),
            "terminal": None if self.terminal is None else asdict(self.terminal),
        }
        payloads = [np.ascontiguousarray(array, _little_endian(array)).tobytes() for array in arrays]
        return Message({"measure": header}, [*(file.data for file in self.files), *payloads])

    @classmethod
    def from_message(cls, message: Message) -> MeasureRequest:
        """Inverse of ``to_message``."""
        asked = message.header["measure"]
        count = len(asked["files"])
        files = [ModelFile(data=data, **f) for f, data in zip(asked["files"], message.payloads[:count], strict=True)]
        images, *targets = (
            np.frombuffer(payload, array["dtype"]).reshape(array["shape"])
            for array, payload in zip(asked["input"]["arrays"], message.payloads[count:], strict=True)
        )
        info = None if asked["input"]["info"] is None else DatasetInfo.from_dict(asked["input"]["info"])
        data = BenchmarkInput(asked["input"]["name"], images, targets[0] if targets else None, info)
        terminal = None if asked["terminal"] is None else Terminal(**asked["terminal"])
        return cls(files, data, BenchmarkSettings(**asked["settings"]), terminal)


def encode(message: Message) -> Iterator[bytes]:
    """The bytes of a message, in parts."""
    header = {**message.header, "payloads": [len(payload) for payload in message.payloads]}
    yield json.dumps(header).encode() + b"\n"
    yield from message.payloads


def receive(stream: IO[bytes]) -> Message | None:
    """The next message, or None if the stream ends before there is one.

    Raises ``EOFError`` if the stream ends within a message, ``ValueError`` for bytes that are no message.
    """
    line = stream.readline()
    if not line:
        return None
    if not line.endswith(b"\n"):
        raise EOFError("the stream ended within a message")
    header = json.loads(line)
    if not isinstance(header, dict) or not isinstance(sizes := header.pop("payloads", None), list):
        raise ValueError(f"expected a message, found {line[:80]!r}")
    payloads = [stream.read(size) for size in sizes]
    if [len(payload) for payload in payloads] != sizes:
        raise EOFError("the stream ended within a message")
    return Message(header, payloads)


def _little_endian(array: NDArray[Any]) -> np.dtype[Any]:
    return array.dtype.newbyteorder("<")
