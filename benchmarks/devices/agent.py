"""``python -m bnnedge.benchmarks.devices.agent``: measures on this machine what another one asks for.

It talks through its standard input and output, and so through whatever connects these: ``ssh.py`` is the other end. A
message is one line of JSON and then as many bytes as its ``payloads`` add up to, cut into these. First the agent says
``{"bnnedge_agent": PROTOCOL, "version": ..}``; what stands before that line is a shell's greeting. Then each request
has one answer, ``{"error": sentence}`` if it cannot be met:

    {"unavailable": runtime}                                           -> {"reason": sentence or null}
    {"measure": {"files", "input", "plan", "terminal"}}, file .. images, labels -> {"rows": [BenchmarkRow's JSON ..]}

Progress goes to the standard error, drawn for the other end's terminal. The end of the input ends the agent, also in
the middle of a measurement. Nothing here needs torch.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bnnedge import __version__
from bnnedge.benchmarks.devices.device import BenchmarkInput, BenchmarkPlan, ModelFile
from bnnedge.benchmarks.devices.local import LocalDevice
from bnnedge.errors import BnnedgeError

PROTOCOL = 1
"""Raised when messages change their meaning."""
HELLO = "bnnedge_agent"


@dataclass(frozen=True)
class Message:
    """What goes through the pipe at once."""

    header: dict[str, Any]
    payloads: Sequence[bytes] = ()


def encode(message: Message) -> Iterator[bytes]:
    """The bytes of a message, in parts."""
    header = {**message.header, "payloads": [len(payload) for payload in message.payloads]}
    yield json.dumps(header).encode() + b"\n"
    yield from message.payloads


def receive(stream: IO[bytes]) -> Message | None:
    """The next message, or None if the stream ends before there is one.

    Raises ``EOFError`` if it ends within a message, ``ValueError`` for what is none.
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


def measure_request(
    files: Sequence[ModelFile], data: BenchmarkInput, plan: BenchmarkPlan, terminal: dict[str, Any] | None
) -> Message:
    """``terminal``: TERM and width of the one that progress is drawn on, or None."""
    fields = [{name: value for name, value in asdict(file).items() if name != "data"} for file in files]
    labelled = data.labels is not None
    header = {
        "files": fields,
        "input": {"name": data.name, "shape": data.images.shape, "labelled": labelled},
        "plan": asdict(plan),
        "terminal": terminal,
    }
    arrays: list[bytes] = [np.ascontiguousarray(data.images, "<f4").tobytes()]
    if data.labels is not None:
        arrays.append(np.ascontiguousarray(data.labels, "<i8").tobytes())
    return Message({"measure": header}, [*(file.data for file in files), *arrays])


def _answer(device: LocalDevice, request: Message) -> Message:
    try:
        if "unavailable" in request.header:
            return Message({"reason": device.unavailable(request.header["unavailable"])})
        return Message({"rows": _measure(device, request)})
    except BnnedgeError as error:
        return Message({"error": str(error)})
    except Exception as error:  # the other end has no traceback of ours to look at
        return Message({"error": f"{type(error).__name__}: {error}"})


def _measure(device: LocalDevice, request: Message) -> list[str]:
    asked = request.header["measure"]
    count = len(asked["files"])
    files = [ModelFile(data=data, **f) for f, data in zip(asked["files"], request.payloads[:count], strict=True)]
    images: NDArray[np.float32] = np.frombuffer(request.payloads[count], "<f4").reshape(asked["input"]["shape"])
    labels = np.frombuffer(request.payloads[count + 1], "<i8") if asked["input"]["labelled"] else None
    data = BenchmarkInput(asked["input"]["name"], images, labels)
    rows = device.measure(files, data, BenchmarkPlan(**asked["plan"]), _console(asked["terminal"]))
    return [row.to_json() for row in rows]


def _console(terminal: dict[str, Any] | None) -> Console:
    if terminal is None:
        return Console(stderr=True)
    os.environ["TERM"] = terminal["term"]
    return Console(stderr=True, force_terminal=True, width=terminal["width"])


def _requests(stream: IO[bytes]) -> Iterator[Message]:
    """Those that come; the process ends with the stream, whatever it does at the time."""
    waiting: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def read() -> None:
        try:
            while (message := receive(stream)) is not None:
                waiting.put(message)
        finally:
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield waiting.get()


def main() -> None:
    # Runtimes may write to the standard output; that must not get among the answers.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

        def send(message: Message) -> None:
            out.writelines(encode(message))
            out.flush()

        send(Message({HELLO: PROTOCOL, "version": __version__}))
        device = LocalDevice()
        for request in _requests(sys.stdin.buffer):
            send(_answer(device, request))


if __name__ == "__main__":
    main()
