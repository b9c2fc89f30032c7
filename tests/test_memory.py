"""What needs more memory than there is is refused with both numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnnedge.errors import ConfigError
from bnnedge.memory import check_memory, free_bytes


def test_the_memory_that_is_there_passes_and_more_does_not() -> None:
    free = free_bytes()
    assert free is not None and 2**26 < free < 2**50
    check_memory(2**20, "a small thing", ConfigError)
    with pytest.raises(ConfigError, match=r"a large thing needs at least 1,048,576.0 GiB of memory, and"):
        check_memory(2**50, "a large thing", ConfigError)


def test_a_container_has_no_more_than_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "limit").write_text("12345\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr("bnnedge.memory._CGROUP_LIMITS", (str(tmp_path / "none"), str(tmp_path / "limit")))
    assert free_bytes() == 12345
