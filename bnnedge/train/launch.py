"""``--gpus`` and ``--processes``: the processes of one machine, started as ``torchrun`` would start them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from bnnedge.errors import BnnedgeError, ConfigError, MissingDependencyError
from bnnedge.train.parent import marked

GRACE_S = 15.0
"""How long the other processes may take to end by themselves once one has failed."""


class ProcessError(BnnedgeError):
    """A training process that ended without a word of its own."""

    exit_code = 1


def parse_gpus(text: str) -> list[int]:
    """The numbers in a text such as ``0,2``.

    Raises ``ConfigError`` or ``MissingDependencyError`` for GPUs that are not there.
    """
    try:
        gpus = [int(number) for number in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--gpus takes numbers with commas between, e.g. 0,1, got {text!r}") from error
    if len(set(gpus)) < len(gpus):
        raise ConfigError(f"--gpus {text} names a GPU twice")
    found = torch.cuda.device_count()
    if found == 0:
        raise MissingDependencyError(f"--gpus {text}: PyTorch sees no GPU here; use --device cpu")
    odd = [gpu for gpu in gpus if not 0 <= gpu < found]
    if odd:
        known = ", ".join(map(str, range(found)))
        raise ConfigError(f"--gpus {text}: there is no GPU {odd[0]}; PyTorch sees {found}: {known}")
    return gpus


def launch(arguments: Sequence[str], processes: int, gpus: Sequence[int] = ()) -> int:
    """Run ``bnnedge`` with ``arguments`` in ``processes`` processes, on the ``gpus`` if there are; the exit code.

    An interrupt (Ctrl-C) is left to the processes, a second one ends them. If one fails, the others are ended. If this
    process is killed, they end with it.
    """
    if processes < 1:
        raise ConfigError(f"--processes must be at least 1, got {processes}")
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        raise ConfigError("torchrun has started the processes already; leave out --gpus and --processes")
    environment = {**marked(os.environ), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = str(_free_port())
    environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = _visible(gpus)
    command = [sys.executable, "-m", "bnnedge", *arguments]
    running: list[subprocess.Popen[bytes]] = []
    with _ending(running):
        for rank in range(processes):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            running.append(subprocess.Popen(command, env=environment | place))
        return _wait(running)


def without_launch_options(arguments: Sequence[str]) -> list[str]:
    """The command line that each process gets."""
    kept, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        if word in ("--gpus", "--processes"):
            del rest[:1]
        elif not word.startswith(("--gpus=", "--processes=")):
            kept.append(word)
    return kept


def _visible(gpus: Sequence[int]) -> str:
    """The value of ``CUDA_VISIBLE_DEVICES`` for ``gpus``, which are places among the GPUs that this process sees."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return ",".join(names[gpu] if names else str(gpu) for gpu in gpus)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def _ending(running: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Leave none of the processes behind, whatever ends this one."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        for process in running:
            with suppress(ProcessLookupError):
                process.terminate()
        for process in running:
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        signal.signal(signal.SIGTERM, before)


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> int:
    interrupted, deadline = False, float("inf")
    while True:
        try:
            codes = [process.poll() for process in running]
            if None not in codes or time.monotonic() > deadline:
                break
            if deadline == float("inf") and any(codes):
                deadline = time.monotonic() + GRACE_S
            time.sleep(0.05)
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            raise ProcessError(f"training process {rank} was ended by {name}; the run continues with --resume")
    failed = next((rank for rank, code in enumerate(codes) if code), 0)
    if failed > 0 and codes[0] is None:  # else the main process has said why
        raise ProcessError(f"training process {failed} ended with exit code {codes[failed]} and the others wait for it")
    return codes[failed] or 0
