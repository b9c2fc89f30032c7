"""The messages between ``bnnedge bench`` and the agent on a device.

A message is one line of JSON, and then as many bytes as its ``payloads`` add up to, which are cut into these. First the
agent says ``{"bnnedge_agent": PROTOCOL, "version": ..}``; what comes before that line is the greeting of a shell. Then
each request has one answer, which is ``{"error": sentence}`` if the request cannot be met:

    {"unavailable": runtime}                                                     -> {"reason": sentence or null}
    {"measure": {"files", "input", "settings"}} and a payload a file,
        one for the images and one for the targets if there are any              -> {"rows": [BenchmarkRow's JSON ..]}

In front of an answer the agent may say {"progress": [what, done, total]}, and says {"alive": true} now and then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bnnedge.benchmarks.devices.device import BenchmarkInput, BenchmarkSettings, ModelFile
from bnnedge.data.info import DatasetInfo
from bnnedge.errors import BenchmarkError, printable
from bnnedge.schema import check, read_json

PROTOCOL = 3
"""Raised when messages change their meaning."""
HELLO = "bnnedge_agent"
ALIVE, PROGRESS = "alive", "progress"
"""The only entries of messages by which an agent says that it is still working on its answer, and how far it is."""
ALIVE_EVERY_S = 10
MOST_HEADER_BYTES = 2**24
MOST_PAYLOAD_BYTES = 2**33
"""Bytes of all payloads of a request; answers have none."""


@dataclass(frozen=True)
class Message:
    """A header and the bytes that come with it."""

    header: dict[str, Any]
    payloads: Sequence[bytes] = ()


@dataclass(frozen=True)
class MeasureRequest:
    """What a device is asked to measure."""

    files: Sequence[ModelFile]
    data: BenchmarkInput
    settings: BenchmarkSettings

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
        return cls(files, data, BenchmarkSettings(**asked["settings"]))


def encode(message: Message) -> Iterator[bytes]:
    """The bytes of a message, in parts."""
    header = {**message.header, "payloads": [len(payload) for payload in message.payloads]}
    yield json.dumps(header).encode() + b"\n"
    yield from message.payloads


class Stream(Protocol):
    """What messages are read from."""

    def readline(self, most: int, /) -> bytes:
        """As that of a file."""

    def read(self, size: int, /) -> bytes:
        """As that of a file."""


_Sizes = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=10_000)]


def receive(stream: Stream, most_payload_bytes: int = 0) -> Message | None:
    """The next message, or None if the stream ends before there is one.

    Raises ``EOFError`` if the stream ends within a message, ``BenchmarkError`` for bytes that are no message, and for
    a message that is larger than allowed.
    """
    line = stream.readline(MOST_HEADER_BYTES + 1)
    if not line:
        return None
    if len(line) > MOST_HEADER_BYTES:
        raise BenchmarkError(f"expected a message of at most {MOST_HEADER_BYTES:,} bytes, found more")
    if not line.endswith(b"\n"):
        raise EOFError("the stream ended within a message")
    header = read_json(line, "a message", BenchmarkError)
    if not isinstance(header, dict):
        raise BenchmarkError(f"expected a message, found {printable(repr(line), most=80)}")
    sizes: list[int] = check(header.pop("payloads", None), _Sizes, "the sizes of a message", BenchmarkError)
    if sum(sizes) > most_payload_bytes:
        raise BenchmarkError(f"expected a message with at most {most_payload_bytes:,} bytes, found {sum(sizes):,}")
    payloads = [stream.read(size) for size in sizes]
    if [len(payload) for payload in payloads] != sizes:
        raise EOFError("the stream ended within a message")
    return Message(header, payloads)


def _little_endian(array: NDArray[Any]) -> np.dtype[Any]:
    return array.dtype.newbyteorder("<")
