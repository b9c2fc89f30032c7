from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command_line import NET


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in a folder that holds two files of models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BNNEDGE_DATA", raising=False)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "exits.py").write_text("raise SystemExit(3)")
