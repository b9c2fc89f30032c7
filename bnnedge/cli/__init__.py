"""The command line, ``bnnedge COMMAND``: one command a file, and what they share beside them."""

from bnnedge.cli.main import main

__all__ = ["main"]
