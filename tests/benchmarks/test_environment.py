from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import pytest

from bnnedge import __version__
from bnnedge.benchmarks.environment import cpu_flags, cpu_model, git_commit, read_environment

X86 = """processor\t: 0
model name\t: AMD Ryzen 9 7950X 16-Core Processor
flags\t\t: fpu sse2 avx2 avx512f avx512_vpopcntdq

processor\t: 1
model name\t: another
"""
RASPBERRY = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid asimddp
CPU implementer\t: 0x41

Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""


def test_x86_cpuinfo() -> None:
    assert cpu_model(X86, None) == "AMD Ryzen 9 7950X 16-Core Processor"
    assert cpu_flags(X86) == ["avx2", "avx512f", "avx512_vpopcntdq"]


def test_arm_cpuinfo_has_no_model_name_so_the_board_stands_for_it() -> None:
    assert cpu_model(RASPBERRY, "Raspberry Pi 5 Model B Rev 1.0") == "Raspberry Pi 5 Model B Rev 1.0"
    assert cpu_flags(RASPBERRY) == ["asimd", "asimddp"]


def test_flags_are_whole_words() -> None:
    assert cpu_flags("flags : avx avx512_vnni2 sse") == []


def test_without_cpuinfo_there_is_still_a_name() -> None:
    assert cpu_model("", None)
    assert cpu_flags("") == []


def test_this_machine() -> None:
    environment = read_environment()
    assert environment.versions["bnnedge"] == __version__
    assert "numpy" in environment.versions
    assert 1 <= environment.cores <= (os.cpu_count() or 1)
    assert environment.memory_bytes is None or environment.memory_bytes > 2**26
    age = datetime.now(timezone.utc) - datetime.fromisoformat(environment.date_utc)
    assert -1 <= age.total_seconds() < 60
    assert json.loads(json.dumps(asdict(environment))) == asdict(environment)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "tracked.py").write_text("1\n")
    (folder / "stranger.py").write_text("2\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "tracked.py"], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True)
    return folder


def test_git_commit_and_its_dirty_mark(repository: Path) -> None:
    head = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert git_commit(repository / "tracked.py") == head
    (repository / "tracked.py").write_text("3\n")
    assert git_commit(repository / "tracked.py") == f"{head}-dirty"


def test_the_commit_of_a_repository_that_does_not_track_the_file_is_not_ours(repository: Path) -> None:
    assert git_commit(repository / "stranger.py") is None


def test_no_commit_outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "file.py").write_text("")
    assert git_commit(tmp_path / "file.py") is None


def test_no_commit_without_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_commit(repository / "tracked.py") is None
