"""``bnnedge evaluate``."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from bnnedge.cli import main
from bnnedge.data.dataset import load_dataset
from bnnedge.registry import Registry
from tests.cli.command_line import Capture, fails, train


def test_a_run_can_be_evaluated_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(train("--epochs", "1", "--out", "run")) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["evaluate", "../run"]) == 0


class FakeTarget:
    """A file format whose file is its own metadata; what `evaluate` needs of the contract, no more."""

    suffix = ".json"
    runtimes = ("absent", "oracle")

    def read_metadata(self, data: bytes) -> dict[str, Any]:
        return dict(json.loads(data))


class Absent:
    @classmethod
    def unavailable(cls) -> str:
        return "not installed here"


class Oracle:
    """Right for the first 100 images, wrong for the rest; sees how it is called."""

    batches: ClassVar[list[int]] = []

    @classmethod
    def unavailable(cls) -> None:
        return None

    @classmethod
    def open(cls, data: bytes) -> Oracle:
        cls.batches = []
        return cls()

    def run(self, images: Any) -> Any:
        labels = load_dataset("digits", 8).arrays("test")[1]
        start = sum(self.batches)
        self.batches.append(len(images))
        wanted = labels[start : start + len(images)]
        right = np.arange(start, start + len(images)) < 100
        return np.eye(10, dtype=np.float32)[np.where(right, wanted, (wanted + 1) % 10)]


class FileInThisProcess:
    """An ``IsolatedFile`` that knows the runtimes of this test."""

    def __init__(self, label: str, data: bytes, batch_bytes: int) -> None:
        self.data = data

    def __enter__(self) -> FileInThisProcess:
        return self

    def __exit__(self, *_: object) -> None: ...

    def load(self, runtime: str) -> Oracle:
        assert runtime == "oracle"
        return Oracle.open(self.data)


@pytest.fixture
def fake_file(monkeypatch: pytest.MonkeyPatch) -> str:
    targets = Registry("target", [("fake", "fake:FakeTarget")])
    runtimes = Registry("runtime", [("absent", "fake:Absent"), ("oracle", "fake:Oracle")])
    monkeypatch.setitem(sys.modules, "fake", sys.modules[__name__])
    monkeypatch.setattr("bnnedge.export.targets.target.TARGETS", targets)
    monkeypatch.setattr("bnnedge.export.runtimes.choose.RUNTIMES", runtimes)
    monkeypatch.setattr("bnnedge.export.evaluate.IsolatedFile", FileInThisProcess)
    Path("net.json").write_text(json.dumps({"dataset": load_dataset("digits", 8).info.to_dict()}))
    return "net.json"


def test_an_exported_file_runs_on_the_first_runtime_that_is_there(fake_file: str, capsys: Capture) -> None:
    assert main(["evaluate", fake_file, "--json", "out.json"]) == 0
    result = json.loads(Path("out.json").read_text())
    assert result["runtime"] == "oracle"
    assert (result["samples"], result["top1"]) == (359, 100 / 359)
    assert Oracle.batches == [64, 64, 64, 64, 64, 39]


def test_an_exported_file_that_cannot_run_is_one_line(fake_file: str, capsys: Capture) -> None:
    fails(["evaluate", fake_file, "--runtime", "absent"], "absent: not installed here", capsys)
    fails(["evaluate", fake_file, "--runtime", "nope"], "unknown runtime 'nope'; known: absent, oracle", capsys)
    Path(fake_file).write_text("{}")
    fails(["evaluate", fake_file], "does not name its data set", capsys)


def test_a_full_disk_leaves_the_old_result_or_none(
    fake_file: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Path("old.json").write_text("old")
    before = sorted(Path().iterdir())
    monkeypatch.setattr("bnnedge.files.os.fsync", full)
    for name in ("old.json", "new.json"):
        fails(["evaluate", fake_file, "--json", name], f"No space left on device: {name}", capsys, code=1)
    assert sorted(Path().iterdir()) == before
    assert Path("old.json").read_text() == "old"


def test_a_pipe_is_written_to_and_stays_a_pipe(fake_file: str, capsys: Capture) -> None:
    os.mkfifo("pipe")
    os.symlink("pipe", "link")
    for name in ("pipe", "link"):
        reader = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
        assert main(["evaluate", fake_file, "--json", name]) == 0
        assert json.loads(os.read(reader, 1 << 16))["runtime"] == "oracle"
        os.close(reader)
    assert Path("pipe").is_fifo() and Path("link").is_symlink()
