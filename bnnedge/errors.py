"""The errors that a user can mend.

The library raises one of these with a sentence that says what was expected, what was found and what to do. The command
line alone turns it into one line on stderr and an exit code.
"""

from __future__ import annotations


class BnnedgeError(Exception):
    """Base of every error that the command line reports in one line."""

    exit_code = 2


class UnknownNameError(BnnedgeError):
    """A name that no registry holds."""


class ConfigError(BnnedgeError):
    """A setting that is unknown, of the wrong type or at odds with another."""


class DataError(BnnedgeError):
    """A data set that is missing or not in its documented format."""


class CheckpointError(BnnedgeError):
    """A run folder or checkpoint that is missing, damaged, or of another version."""


class ExportError(BnnedgeError):
    """A layer or file that cannot be written or read; the message names it."""


class MissingDependencyError(BnnedgeError):
    """An optional package, a compiler or a device that is not there."""


class BenchmarkError(BnnedgeError):
    """A measurement that cannot be taken as asked."""


class VerificationError(BnnedgeError):
    """An exported file whose results differ from the checkpoint's beyond rounding."""

    exit_code = 1


class InterruptedRunError(BnnedgeError):
    """A training run that the user interrupted and that can be resumed."""

    exit_code = 130


class BnnedgeWarning(UserWarning):
    """Something that is probably not what the user wants; nothing is changed by it."""


def one_line(error: BaseException, most: int = 200) -> str:
    """The message of another library's error in one line of at most ``most`` characters."""
    return " ".join(str(error).split())[:most]


def printable(text: str, most: int = 300) -> str:
    """Return text from outside in at most ``most`` characters, with control characters escaped.

    A file or a device cannot clear the screen or retitle the terminal through a message that quotes it.
    """
    shown = text if len(text) <= most else f"{text[: most - 1]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
