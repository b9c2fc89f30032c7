"""The memory of this machine, and what asks for more of it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from bnnedge.errors import BnnedgeError

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_bytes() -> int | None:
    """The memory that this process can have at most: the machine's or its container's; None where nothing tells."""
    limits = []
    with suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in _CGROUP_LIMITS:
        with suppress(ValueError, OSError):  # a container without a limit says "max"
            limits.append(int(Path(name).read_text(encoding="ascii")))
    return min((limit for limit in limits if limit > 0), default=None)


def check_memory(needed: int, what: str, error: type[BnnedgeError]) -> None:
    """Raise ``error`` if ``what`` needs more bytes than this machine has: better now than half-way through it."""
    most = memory_bytes()
    if most is not None and needed > most:
        raise error(
            f"{what} needs at least {_gibibytes(needed)} of memory, and this machine has {_gibibytes(most)}; choose "
            "smaller images, batches or networks"
        )


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
