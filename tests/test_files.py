"""Files are read within a limit, with one line that names what is none, and written whole or not at all."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bnnedge.errors import DataError
from bnnedge.files import append, read_within, remove_unfinished, write_atomically, write_output


def test_a_file_of_just_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert read_within(tmp_path / "x", 3, DataError) == b"abc"
    with pytest.raises(DataError, match=r"x: expected at most 2 bytes, found more"):
        read_within(tmp_path / "x", 2, DataError)


def test_a_pipe_a_folder_and_an_endless_device_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless", "."):
        with pytest.raises(DataError, match=r"expected a file|is a directory|Is a directory"):
            read_within(tmp_path / name, 100, DataError)


def test_a_missing_file_and_an_impossible_name_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none cannot be read: No such file"):
        read_within(tmp_path / "none", 1, DataError)
    with pytest.raises(DataError, match=r"cannot be read"):
        read_within(tmp_path / "null\0byte", 1, DataError)


def test_several_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            write_atomically(tmp_path / "x", bytes([number]) * 50_000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(set((tmp_path / "x").read_bytes())) == 1 and len((tmp_path / "x").read_bytes()) == 50_000
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_permissions_are_kept_and_those_of_new_files_are_usual(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new", b"")
    (tmp_path / "usual").touch()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode
    (tmp_path / "new").chmod(0o600)
    write_atomically(tmp_path / "new", b"x")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_symbolic_links_are_followed_only_where_the_user_names_them(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    link = tmp_path / "link"
    for write, kept in ((write_output, False), (write_atomically, True), (append, True)):
        outside.write_bytes(b"mine")
        link.unlink(missing_ok=True)
        link.symlink_to("outside")
        if write is append:
            with pytest.raises(OSError, match=r"found a symbolic link.*link"):
                write(link, b"new")
        else:
            write(link, b"new")
        assert outside.read_bytes() == (b"mine" if kept else b"new")


def test_an_append_that_fails_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    append(tmp_path / "rows", b"one\n")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        append(tmp_path / "rows", b"two\n")
    assert caught.value.filename == str(tmp_path / "rows")
    assert (tmp_path / "rows").read_bytes() == b"one\n"


def test_unfinished_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    for name in (".last.ckpt.0123abcd.tmp", ".other.ckpt.0123abcd.tmp", "last.ckpt"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path, "last.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.ckpt.0123abcd.tmp", "last.ckpt"]
