"""What libraries write to the standard error in normal use, kept off the user's screen unless ``--debug`` is given."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_DEBUG_VARIABLE = "BNNEDGE_DEBUG"
"""The environment variable that ``--debug`` sets, so that processes which this one starts know of it too."""
_NOISE = re.compile(rb"(\x1b\[[\d;]*m)*(INFO: |VERBOSE: |.*\[[VIW]:onnxruntime:)")
_NOWHERE = logging.NullHandler()
_one_at_a_time = threading.RLock()


def debugging() -> bool:
    """Whether the user asked to see everything."""
    return bool(os.environ.get(_DEBUG_VARIABLE))


@contextmanager
def debug_mode(wanted: bool) -> Iterator[None]:
    """Let ``debugging`` be true inside of ``with`` if ``wanted``, also in processes that are started there.

    Otherwise what libraries log, and no handler of the user's takes, appears nowhere.
    """
    before = os.environ.get(_DEBUG_VARIABLE)
    if wanted:
        os.environ[_DEBUG_VARIABLE] = "1"
    else:
        logging.getLogger().addHandler(_NOWHERE)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(_NOWHERE)
        if wanted and before is None:
            del os.environ[_DEBUG_VARIABLE]


@contextmanager
def without_noise() -> Iterator[None]:
    """Leave out lines in which LiteRT and ONNX Runtime say that all is well, from the whole process's standard error.

    These come from compiled code, past ``sys.stderr``. All other lines appear once the body of ``with`` is done, and
    while ``debugging`` every line appears at once.
    """
    if debugging():
        yield
        return
    with _one_at_a_time, ExitStack() as closing:
        try:
            kept = closing.enter_context(tempfile.TemporaryFile())
            screen = os.dup(2)
        except OSError:  # there is no standard error, or no room for what it says
            yield
            return
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            kept.seek(0)
            for line in kept:
                if not _NOISE.match(line):
                    os.write(2, line)
