"""A process that ends when the one that started it ends, however that ends: also by SIGKILL."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping

_NAME = "BNNEDGE_LAUNCHER"
_PR_SET_PDEATHSIG = 1


def marked(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child that calls ``end_with_parent``."""
    return {**environment, _NAME: str(os.getpid())}


def end_with_parent() -> None:
    """From now on this process is killed when its parent ends, if that gave it an environment of ``marked``.

    A parent that has ended already ends this process at once.
    """
    parent = os.environ.pop(_NAME, "")  # children of this process have another parent
    if not parent:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
