"""Files that are written whole or not at all, and read within a limit."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bnnedge.errors import BnnedgeError, printable


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that a crash at any moment leaves the old file or the new one, complete.

    An ``OSError`` names ``path``, also where a full disk's names no file.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_within(path: Path, most: int, error: type[BnnedgeError]) -> bytes:
    """Return the bytes of a regular file of at most ``most`` bytes.

    Raises ``error`` naming ``path`` if it is missing, unreadable, larger, or no regular file (a folder, a named pipe or
    a device, which could block or never end).
    """
    try:
        # O_NONBLOCK: opening a named pipe would otherwise wait for a writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise error(f"{printable(str(path))}: expected a file, found a pipe or a device")
            data = file.read(most + 1)
    except (OSError, ValueError) as failure:
        reason = getattr(failure, "strerror", None) or failure
        raise error(f"{printable(str(path))} cannot be read: {reason}") from failure
    if len(data) > most:
        raise error(f"{printable(str(path))}: expected at most {most:,} bytes, found more")
    return data
