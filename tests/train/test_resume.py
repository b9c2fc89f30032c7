"""A run that is stopped at any moment and resumed gives, bit for bit, the weights of an uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bnnedge.config import RunConfig
from bnnedge.errors import CheckpointError, ConfigError
from bnnedge.files import write_atomically
from bnnedge.train import loop
from bnnedge.train.checkpoint import Checkpoint, read_checkpoint
from bnnedge.train.run_folder import RunFolder
from bnnedge.train.start import resume_run, start_run
from tests.train.same_run import assert_same_run

Config = Callable[..., RunConfig]


class Crash(BaseException):
    """Stands for a power cut: nothing in the library catches it."""


def crash_at(call: int, monkeypatch: pytest.MonkeyPatch, half_line: bool = False) -> None:
    """Let the ``call``-th file write of the loop (metrics, last, best, metrics, ...) crash before it happens."""
    calls = 0

    def counted(write: Callable[..., None]) -> Callable[..., None]:
        def wrapper(*arguments: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == call:
                if half_line and isinstance(arguments[0], RunFolder):
                    with arguments[0].metrics.open("a") as file:
                        file.write('{"epoch": ')
                raise Crash
            write(*arguments)

        return wrapper

    monkeypatch.setattr(loop, "write_atomically", counted(write_atomically))
    monkeypatch.setattr(RunFolder, "append_metrics", counted(RunFolder.append_metrics))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_resume_equals_uninterrupted(
    optimizer: str, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(optimizer=optimizer, epochs=4, warm_up=1)
    start_run(config, tmp_path / "whole")
    for run, call in (("after one", 4), ("after two", 7)):
        with monkeypatch.context() as patch, pytest.raises(Crash):
            crash_at(call, patch)
            start_run(config, tmp_path / run)
        torch.rand(7)
        resume_run(tmp_path / run)
        assert_same_run(tmp_path / "whole", tmp_path / run)


@pytest.mark.parametrize("half_line", [False, True])
@pytest.mark.parametrize("call", range(1, 8))
def test_a_crash_at_any_write_is_made_good(
    call: int, half_line: bool, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(epochs=3, lr=0.02)
    start_run(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_at(call, patch, half_line)
        start_run(config, tmp_path / "cut")
    resume_run(tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_crash_before_the_final_best_checkpoint(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No later epoch comes to write ``best.ckpt`` again, so it has to be made good from ``last.ckpt``."""
    config = tiny_config(epochs=1)
    start_run(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_at(3, patch)
        start_run(config, tmp_path / "cut")
    assert (tmp_path / "cut" / "last.ckpt").exists() and not (tmp_path / "cut" / "best.ckpt").exists()
    resume_run(tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_crash_before_the_test_evaluation(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_run(tiny_config(), tmp_path / "run")
    result = (tmp_path / "run" / "result.json").read_text()
    (tmp_path / "run" / "result.json").unlink()
    resume_run(tmp_path / "run")
    assert (tmp_path / "run" / "result.json").read_text() == result


def test_a_finished_run_stays_as_it_is(tiny_config: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = start_run(tiny_config(), run)
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    assert resume_run(run) == result
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_resume_keeps_the_settings(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config()
    run = tmp_path / "run"
    result = start_run(config, run)
    same = {"epochs": "3", "method": "ste", "model": config.model, "threads": 2, "method_options": {"a32": "no"}}
    assert resume_run(run, same) == result
    for given, words in (
        ({"epochs": 5}, "epochs is 3 there, 5 was given"),
        ({"method": "rbnn"}, "method is 'ste' there, 'rbnn' was given"),
        ({"method_options": {"weight_clip": 2}}, "weight_clip is 1.0 there, 2.0 was given"),
        ({"method_options": {"tmin": 2}}, "method ste has no option 'tmin'"),
    ):
        with pytest.raises(ConfigError, match=words):
            resume_run(run, given)


def test_resume_refuses_what_it_cannot_continue(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no run in"):
        resume_run(tmp_path / "none")
    run = tmp_path / "run"
    start_run(tiny_config(epochs=1), run)
    data = (run / "last.ckpt").read_bytes()
    (run / "last.ckpt").write_bytes(data[:1000])
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    with pytest.raises(CheckpointError, match="damaged"):
        resume_run(run)
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_resume_refuses_another_models_checkpoint(tiny_config: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start_run(tiny_config(epochs=2), run)
    (run / "result.json").unlink()
    checkpoint: Checkpoint = read_checkpoint(run / "last.ckpt")
    del checkpoint.model["conv.weight"]
    write_atomically(run / "last.ckpt", checkpoint.to_bytes())
    with pytest.raises(CheckpointError, match=r"does not fit model.*conv\.weight"):
        resume_run(run)
