"""The memory that this process can still get, and what asks for more of it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from bnnedge.errors import BnnedgeError

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def free_bytes() -> int | None:
    """The memory that this process can still get, at most; None where nothing tells.

    On Linux it is what the kernel can give without ending a process, and no more than the container's limit; elsewhere
    the memory of the machine.
    """
    limits = []
    with suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(KeyError, ValueError, OSError):
        lines = [line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines()]
        kibibytes = {words[0]: int(words[1]) for words in lines}
        limits.append(1024 * (kibibytes["MemAvailable:"] + kibibytes["SwapFree:"]))
    for name in _CGROUP_LIMITS:
        with suppress(ValueError, OSError):  # a container without a limit says "max"
            limits.append(int(Path(name).read_text(encoding="ascii")))
    return min(limits, default=None)


def check_memory(needed: int, what: str, error: type[BnnedgeError]) -> None:
    """Raise ``error`` if ``what`` needs more bytes than there are: better now than half-way through it."""
    most = free_bytes()
    if most is not None and needed > most:
        raise error(
            f"{what} needs at least {_gibibytes(needed)} of memory, and {_gibibytes(most)} are free here; choose "
            "smaller images, batches or networks"
        )


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
