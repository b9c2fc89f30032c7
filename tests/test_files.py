"""Reading within a limit: what is no regular file, too large or missing is one line that names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bnnedge.errors import DataError
from bnnedge.files import read_within


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
