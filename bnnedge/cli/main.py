"""Entry point of the command line: runs a command and turns what goes wrong into one line and an exit code.

Exit codes: 0 done, 1 the work itself failed, 2 the user made a mistake that one line on stderr explains, 130
interrupted. Nothing slow is imported before the ``try`` of ``main``, so that an interrupt during imports is one line,
too.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from bnnedge.errors import BnnedgeError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; ``argv`` is without the program's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"] or ["--help"]
    try:
        from bnnedge.cli.app import app

        code = app(args=arguments, prog_name="bnnedge", standalone_mode=False, obj=arguments)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as ended:  # of processes that have said what there was to say
        return int(ended.code or 0)
    except Exception as error:
        explained = _explain(error)
        if explained is None:
            raise
        message, code = explained
        if debug:
            traceback.print_exc()
        _say(message)
        return code
    if code == INTERRUPTED:
        _say("interrupted")
    return code if isinstance(code, int) else 0


def _say(message: str) -> None:
    """Print an error, unless this is one of several training processes and another one prints what all agree on."""
    if os.environ.get("RANK", "0") == "0" or "WORLD_SIZE" not in os.environ:
        print(f"error: {' '.join(message.split())}", file=sys.stderr)


def _explain(error: Exception) -> tuple[str, int] | None:
    """Return message and exit code of an error that is not a bug of ours, None for one that is."""
    if isinstance(error, BnnedgeError):
        return str(error), error.exit_code
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


def _unknown_option(error: Exception) -> str:
    name, near = getattr(error, "option_name", ""), getattr(error, "possibilities", None) or []
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "bnnedge")
    hint = f"; did you mean {', '.join(near)}?" if near else ";"
    return f"{command} has no option {name}{hint} `{command} --help` lists all"
