"""The page of the command line: what every command prints for ``--help``."""

from __future__ import annotations

import contextlib
import io
import os

from bnnedge.cli import main

_COMMANDS = ("train", "evaluate", "export", "summary", "bench", "report", "list", "doctor")
WIDTH = 110


def help_of(*words: str) -> str:
    """What ``bnnedge WORDS --help`` prints, ``WIDTH`` columns wide and without colours."""
    before = dict(os.environ)
    os.environ |= {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = main([*words, "--help"])
    finally:
        os.environ.clear()
        os.environ.update(before)
    if code != 0:
        raise RuntimeError(f"bnnedge {' '.join(words)} --help ended with {code}")
    return printed.getvalue().strip("\n")


def page() -> str:
    """The whole page."""
    parts = [
        "# Command line",
        "",
        "This page is generated from the commands themselves. A command ends with exit code 0 when its work is done, "
        "with 1 when the work itself failed, with 2 when a single line on the standard error explains a mistake in "
        "what was asked for, and with 130 when it was interrupted.",
        "",
    ]
    for name in ("", *_COMMANDS):
        words = (name,) if name else ()
        parts += [f"## `{' '.join(('bnnedge', *words))}`", "", "```text", help_of(*words), "```", ""]
    return "\n".join(parts)
