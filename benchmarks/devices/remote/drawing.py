"""What another machine may draw on the terminal of this one: text and progress bars."""

from __future__ import annotations

import codecs
import re
import sys
import time

from bnnedge.errors import printable

_ALLOWED = r"\x1b\[(?:\d{0,3}(?:;\d{1,3}){0,9}m|[0-2]?K|\d{0,2}A|\?25[lh])|[\r\n\t]"
"""Colours, clearing a line, going up some lines, hiding the cursor: the escape sequences of a progress bar."""
_PIECE = re.compile(f"({_ALLOWED})|.", re.DOTALL)
_CUT_OFF = re.compile(r"\x1b(?:\[[?\d;]{0,40})?\Z")
_BYTES_AT_ONCE, _BYTES_A_SECOND = 2**18, 2**16


class DrawingFilter:
    """Copies another machine's standard error to that of this one.

    Text, line ends and the escape sequences of a progress bar pass; other control characters are shown escaped, so that
    a device cannot clear or retitle the terminal. What is too much to be progress is left out.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._cut_off = ""
        self._started = time.monotonic()
        self._written = 0

    def write(self, part: bytes) -> None:
        """Copy ``part``, which may end within a character or a sequence."""
        allowed = _BYTES_AT_ONCE + _BYTES_A_SECOND * (time.monotonic() - self._started) - self._written
        if len(part) > allowed:
            return
        self._written += len(part)
        text = self._cut_off + self._decoder.decode(part)
        cut_off = _CUT_OFF.search(text)
        self._cut_off = text[cut_off.start() :] if cut_off else ""
        shown = _PIECE.sub(_shown, text[: len(text) - len(self._cut_off)])
        sys.stderr.write(shown.encode(sys.stderr.encoding or "utf-8", "replace").decode(sys.stderr.encoding or "utf-8"))
        sys.stderr.flush()


def _shown(piece: re.Match[str]) -> str:
    return piece[0] if piece[1] else printable(piece[0])
