"""A run that is stopped at any moment and resumed gives, bit for bit, the weights of an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
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

Config = Callable[..., RunConfig]


def assert_same_state(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same_state(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def assert_same_run(a: Path, b: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        x, y = (vars(read_checkpoint(run / name)) for run in (a, b))
        assert_same_state(x, y, name)
    rows = [[json.loads(s) for s in (run / "metrics.jsonl").read_text().splitlines()] for run in (a, b)]
    for row in (*rows[0], *rows[1]):
        del row["epoch_s"], row["images_per_s"]
    assert rows[0] == rows[1]
    assert (a / "result.json").read_text() == (b / "result.json").read_text()


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


def command(config: RunConfig, run: Path) -> list[str]:
    settings = ["--method", config.method, "--model", config.model, "--epochs", str(config.epochs)]
    return [
        *(sys.executable, "-m", "bnnedge", "train", *settings, "--image-size", "8", "--device", "cpu"),
        *("--set", "threads=1", "--out", str(run)),
    ]


def kill_after(epochs: int, arguments: list[str], run: Path, environment: dict[str, str]) -> None:
    """Start the command and SIGKILL it half-way through the epoch that follows ``epochs`` finished ones."""
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    started = run / ("config.yaml" if epochs == 0 else "last.ckpt")
    while not started.exists() or (epochs and read_checkpoint(started).epoch < epochs):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()
        time.sleep(0.02)
    time.sleep(0.3)  # an epoch has 10 steps of 100 ms
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()


def test_kill_minus_nine_and_resume(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(epochs=4)
    start_run(config, tmp_path / "whole")
    run = tmp_path / "killed"
    package_root = str(Path(loop.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": package_root, "STEP_S": "0.1"}
    kill_after(0, command(config, run), run, environment)
    assert not (run / "last.ckpt").exists()
    kill_after(2, [*command(config, run), "--resume"], run, environment)
    assert 2 <= read_checkpoint(run / "last.ckpt").epoch < 4
    subprocess.run([*command(config, run), "--resume"], env=environment, check=True, capture_output=True, timeout=120)
    assert_same_run(tmp_path / "whole", run)
