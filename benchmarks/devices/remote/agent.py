"""``python -m bnnedge.benchmarks.devices.remote.agent`` measures on this machine what another one asks for.

It talks through its standard input and output, and so through whatever connects these; ``connection.py`` is the other
end and ``protocol.py`` defines the messages. The end of the input ends the agent, also in the middle of a measurement.
Nothing here needs PyTorch.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from bnnedge import __version__
from bnnedge.benchmarks.devices.local import LocalDevice
from bnnedge.benchmarks.devices.remote.protocol import (
    ALIVE,
    ALIVE_EVERY_S,
    HELLO,
    MOST_PAYLOAD_BYTES,
    PROGRESS,
    PROTOCOL,
    MeasureRequest,
    Message,
    encode,
    receive,
)
from bnnedge.errors import BnnedgeError

Send = Callable[[Message], None]


def _answer(device: LocalDevice, request: Message, send: Send) -> Message:
    try:
        if "unavailable" in request.header:
            return Message({"reason": device.unavailable(request.header["unavailable"])})
        return Message({"rows": _measure(device, MeasureRequest.from_message(request), send)})
    except BnnedgeError as error:
        return Message({"error": str(error)})
    except Exception as error:  # the other end cannot see a traceback
        return Message({"error": f"{type(error).__name__}: {error}"})


def _measure(device: LocalDevice, request: MeasureRequest, send: Send) -> list[str]:
    def report(what: str, done: int, total: int) -> None:
        send(Message({PROGRESS: [what, done, total]}))

    rows = device.measure(request.files, request.data, request.settings, report)
    return [row.to_json() for row in rows]


def _requests(stream: IO[bytes]) -> Iterator[Message]:
    """The requests, as they come. The process ends with the stream, whatever it does at the time."""
    waiting: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def read() -> None:
        try:
            while (message := receive(stream, MOST_PAYLOAD_BYTES)) is not None:
                waiting.put(message)
        finally:
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield waiting.get()


def main() -> None:
    """Greet, and answer requests until the standard input ends."""
    # Runtimes may write to the standard output, which must not get among the answers.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

        lock = threading.Lock()

        def send(message: Message) -> None:
            try:
                with lock:
                    out.writelines(encode(message))
                    out.flush()
            except OSError:  # nobody is there to answer
                os._exit(1)

        send(Message({HELLO: PROTOCOL, "version": __version__}))
        device = LocalDevice()
        for request in _requests(sys.stdin.buffer):
            with _alive(send):
                answer = _answer(device, request, send)
            send(answer)


@contextmanager
def _alive(send: Send) -> Iterator[None]:
    """Say now and then, while the body of ``with`` runs, that the agent is alive."""
    done = threading.Event()

    def say() -> None:
        while not done.wait(ALIVE_EVERY_S):
            send(Message({ALIVE: True}))

    saying = threading.Thread(target=say, daemon=True)
    saying.start()
    try:
        yield
    finally:
        done.set()
        saying.join()


if __name__ == "__main__":
    main()
