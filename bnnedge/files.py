"""Files that are written whole or not at all, and read within a limit."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bnnedge.errors import BnnedgeError, printable

TEMPORARY = ".tmp"
"""How the names of unfinished files end, which also begin with a dot and the name that they will have."""


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that a crash at any moment leaves the old file or the new one, complete.

    A symbolic link is replaced, not followed. Several writers do not disturb each other; the last one's file stays. An
    ``OSError`` names ``path``, also where a full disk's names no file.
    """
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with open(number, "wb") as file:
            if path.is_file():
                os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
            file.write(data)
            file.flush()
            os.fsync(number)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise
    _sync_folder(path.parent)


def remove_unfinished(folder: Path, name: str) -> None:
    """Remove what killed writers of ``folder``/``name`` left; no other writer of that file may be at work."""
    for left in folder.glob(f".{name}.*{TEMPORARY}"):
        with suppress(OSError):
            left.unlink()


def write_output(path: Path, data: bytes) -> None:
    """Write ``data`` to a place that the user names, as ``write_atomically`` does.

    The file behind a symbolic link is replaced, and a pipe or a device is written to.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
    else:
        write_atomically(Path(os.path.realpath(path)) if path.is_symlink() else path, data)


def append(path: Path, data: bytes) -> None:
    """Add ``data`` to the end of a file, making it if needed, and see it onto the disk.

    If that fails, as on a full disk, the file is left as it was; an ``OSError`` names ``path``. Raises ``OSError`` for
    a symbolic link, so that nobody's run folder leads to a file outside of it.
    """
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            size = os.fstat(file).st_size
            try:
                left = memoryview(data)
                while left:
                    left = left[os.write(file, left) :]
                os.fsync(file)
            except BaseException:
                with suppress(OSError):  # a pipe has no length
                    os.ftruncate(file, size)
                raise
        finally:
            os.close(file)
    except OSError as error:
        error.filename = str(path)
        if error.errno == errno.ELOOP:
            error.strerror = "expected a file, found a symbolic link"
        raise


@contextmanager
def open_regular(path: Path, error: type[BnnedgeError]) -> Iterator[BinaryIO]:
    """A regular file, opened to be read as bytes.

    Raises ``error`` naming ``path`` if it is missing, unreadable or no regular file (a folder, a named pipe or a
    device, which could block or never end).
    """
    try:
        # O_NONBLOCK: opening a named pipe would otherwise wait for a writer.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as failure:
        raise _unreadable(path, failure, error) from failure
    try:
        kind = os.fstat(number).st_mode
        if stat.S_ISDIR(kind):
            raise error(f"{printable(str(path))} cannot be read: {os.strerror(errno.EISDIR)}")
        if not stat.S_ISREG(kind):
            raise error(f"{printable(str(path))}: expected a file, found a pipe or a device")
        with open(number, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(number)


def read_within(path: Path, most: int, error: type[BnnedgeError]) -> bytes:
    """Return the bytes of a regular file of at most ``most`` bytes.

    Raises ``error`` naming ``path`` if it is larger, and as ``open_regular`` does.
    """
    with open_regular(path, error) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            # What the file holds now may be more than the size says, as that of a file of /proc does.
            data = b"" if size > most else file.read(min(most, max(size, 1 << 16)) + 1)
        except (OSError, ValueError) as failure:
            raise _unreadable(path, failure, error) from failure
    if size > most or len(data) > most:
        raise error(f"{printable(str(path))}: expected at most {most:,} bytes, found more")
    return data


def _unreadable(path: Path, failure: Exception, error: type[BnnedgeError]) -> BnnedgeError:
    reason = getattr(failure, "strerror", None) or failure
    return error(f"{printable(str(path))} cannot be read: {reason}")


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
