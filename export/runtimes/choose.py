"""The choice of the runtime that a file is run in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bnnedge.errors import BenchmarkError, MissingDependencyError
from bnnedge.export.runtimes import RUNTIMES


def choose_runtime(
    known: Sequence[str], wanted: str, label: str, unavailable: Callable[[str], str | None] | None = None
) -> str:
    """``wanted``, or for ``auto`` the first of ``known`` that can be used; ``label`` is the file, for messages.

    ``unavailable`` says why a runtime cannot be used (on a device); by default it is asked of this machine.

    Raises ``UnknownNameError``, ``BenchmarkError`` for a runtime of another format, ``MissingDependencyError``.
    """
    if wanted != "auto":
        RUNTIMES.check(wanted)
        if wanted not in known:
            raise BenchmarkError(f"{label}: {wanted} cannot run such files; use one of: {', '.join(known)}, auto")
    reasons = []
    for name in known if wanted == "auto" else (wanted,):
        reason = unavailable(name) if unavailable else RUNTIMES.load(name).unavailable()
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    raise MissingDependencyError(f"{label}: no runtime is available; {'; '.join(reasons)}")
