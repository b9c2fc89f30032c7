"""Stock runtimes in a forked process: the threads that they started stay behind in the parent.

LiteRT crashes and ONNX Runtime waits for ever when a forked process drops what has such threads. So it is never dropped
there; the memory is that of the parent, copied only where it is written to.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any

_opened: weakref.WeakSet[Any] = weakref.WeakSet()


def never_drop_in_forked_processes(opened: Any) -> Any:
    """Return ``opened``, an interpreter or session, of which forked processes will keep a reference for good."""
    _opened.add(opened)
    return opened


def _keep_all() -> None:
    for opened in _opened:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(opened))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_all)
