"""Entry point of the command line: runs a command and turns what goes wrong into one line and an exit code.

Exit codes: 0 done, 1 the work itself failed, 2 the user made a mistake that one line on stderr explains, 130
interrupted. Nothing slow is imported before the ``try`` of ``main``, so that an interrupt during imports is one line,
too.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bnnedge.errors import BnnedgeError, BnnedgeWarning, one_line, printable
from bnnedge.noise import debug_mode

INTERRUPTED = 130
MOST_CHARACTERS = 4000
"""Longest line that is printed; a message quotes what a file holds."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; ``argv`` is without the program's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"] or ["--help"]
    _replace_what_cannot_be_written()
    try:
        with debug_mode(debug), _warnings_as_lines(debug):
            from bnnedge.cli.app import app

            code = app(args=arguments, prog_name="bnnedge", standalone_mode=False, obj=arguments)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (Exception, SystemExit) as error:
        explained = _explain(error)
        if explained is None:
            raise
        message, code = explained
        if debug:
            traceback.print_exc()
        if message:
            _say("error", message)
        return code
    if code == INTERRUPTED:
        _say("error", "interrupted")
    return code if isinstance(code, int) else 0


def _replace_what_cannot_be_written() -> None:
    """Let a character that the standard output's encoding lacks, such as ASCII's, be a question mark and no error.

    How the user asked for it to be written, as by ``PYTHONIOENCODING=ascii:backslashreplace``, stays.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="replace")


@contextmanager
def _warnings_as_lines(debug: bool) -> Iterator[None]:
    """Show the project's warnings as one line each; those of libraries, which the user cannot act on, if ``debug``."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, BnnedgeWarning):
            _say("warning", str(message))
        elif debug:
            _say(category.__name__, str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("once", BnnedgeWarning)
        warnings.showwarning = show
        yield


def _say(kind: str, message: str) -> None:
    """Print a line, unless this is one of several training processes and another one prints what all agree on."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or not rank.isdigit() or not os.environ.get("WORLD_SIZE", "").isdigit():
        line = printable(" ".join(message.split()), most=MOST_CHARACTERS)
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        print(f"{kind}: {line}".encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)


def _explain(error: BaseException) -> tuple[str, int] | None:
    """Return message and exit code of an error that is not a bug of ours, None for one that is."""
    if isinstance(error, BnnedgeError):
        return str(error), error.exit_code
    user_code = sys.modules.get("bnnedge.models.user_code")  # without it, no code of the user has run
    if user_code and user_code.is_failure(error):
        return f"the user's own code fails: {user_code.failure(error)}", 2
    if isinstance(error, SystemExit):  # of processes that have said what there was to say
        return "", error.code if isinstance(error.code, int) else int(error.code is not None)
    if needs := _memory(error):
        return needs, 1
    if isinstance(error, BrokenPipeError):
        return "", 1
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1
    if type(error).__name__ == "Abort":  # typer's, for an interrupt or the end of the input
        return "interrupted", INTERRUPTED
    # The parser's errors are classes of click's or, in newer versions of typer, of its copy of click.
    if hasattr(error, "possibilities"):
        return _unknown_option(error), 2
    if hasattr(error, "format_message"):
        return str(error.format_message()), 2
    return None


def _memory(error: BaseException) -> str:
    """What to do about an allocation that failed; empty for another error."""
    # PyTorch raises a RuntimeError where its allocator for the CPU fails; oneDNN's layers say no more than that they
    # could not be created.
    texts = (
        "can't allocate memory",
        "not enough memory",
        "out of memory",
        "bad_alloc",
        "bad allocation",
        "could not create a primitive",
        "could not create a memory object",
        "could not create a scratchpad",
        "can't start new thread",
        "failed to map segment",
    )
    failed = isinstance(error, MemoryError) or any(text in str(error).lower() for text in texts)
    if not failed or not isinstance(error, MemoryError | RuntimeError | OSError | ImportError):
        return ""
    reason = one_line(error) or "MemoryError"
    return f"this needs more memory than there is ({reason}); try a smaller batch, image or network"


def _unknown_option(error: BaseException) -> str:
    name, near = getattr(error, "option_name", ""), getattr(error, "possibilities", None) or []
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "bnnedge")
    hint = f"; did you mean {', '.join(near)}?" if near else ";"
    return f"{command} has no option {name}{hint} `{command} --help` lists all"
