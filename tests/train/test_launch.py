"""``--gpus``, ``--processes`` and torchrun from the command line: what is refused, printed, ended and left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bnnedge import cli
from bnnedge.config import RunConfig
from bnnedge.errors import BnnedgeError, ConfigError, MissingDependencyError
from bnnedge.train import launch as launch_module
from bnnedge.train.checkpoint import read_checkpoint
from bnnedge.train.launch import launch, parse_gpus, without_launch_options

Config = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("text", "found", "kind", "words"),
    [
        ("0,7", 2, ConfigError, "--gpus 0,7: there is no GPU 7; PyTorch sees 2: 0, 1"),
        ("-1", 2, ConfigError, "there is no GPU -1"),
        ("1,1", 2, ConfigError, "--gpus 1,1 names a GPU twice"),
        ("0;1", 2, ConfigError, "numbers with commas between, e.g. 0,1, got '0;1'"),
        ("", 2, ConfigError, "numbers with commas between"),
        ("0", 0, MissingDependencyError, "--gpus 0: PyTorch sees no GPU here"),
    ],
)
def test_gpus_that_are_not_there(
    text: str, found: int, kind: type[BnnedgeError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(kind, match=words):
        parse_gpus(text)


def test_gpus_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert parse_gpus("2,0") == [2, 0]
    assert launch_module._visible([2, 0]) == "2,0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-8e2f,7")
    assert launch_module._visible([2, 0, 1]) == "7,5,GPU-8e2f"


def test_the_processes_get_the_command_line_without_launch_options() -> None:
    words = ["train", "--gpus", "0,1", "--lr", "0.1", "--processes=2", "--gpus=1", "--compile", "--processes", "2"]
    assert without_launch_options(words) == ["train", "--lr", "0.1", "--compile"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", "0"], "--processes must be at least 1, got 0"),
        (["--gpus", "0", "--device", "cpu"], "--gpus is at odds with --device cpu"),
        (["--gpus", "0", "--processes", "1"], "--gpus is at odds with --processes"),
        (["--processes", "2", "--epochs", "0"], "epochs must be at least 1"),
        (["--processes", "2", "--method", "nope"], "unknown method 'nope'"),
        (["--precision", "fp8"], "precision must be one of fp32, bf16, got 'fp8'"),
        (["--kernels", "cuda"], "kernels must be one of auto, triton, torch, got 'cuda'"),
        (["--kernels", "triton"], "kernels triton needs an NVIDIA GPU, the run is on the CPU; use --kernels auto"),
        (["--accumulate", "0"], "accumulate must be at least 1, got 0"),
        (["--ema", "1"], "ema must be above 0 and below 1"),
        (["--accumulate", "100"], "has micro-batches of 1 with accumulate 100, but needs 2 samples"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [] if "--gpus" in words else ["--device", "cpu"]
    assert cli.main(["train", *words, *place, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_torchrun_and_processes_are_at_odds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun has started the processes already"):
        launch(["train"], 2)


def command(config: RunConfig, out: Path, *more: str) -> list[str]:
    return [
        *("train", "--method", config.method, "--model", config.model, "--epochs", str(config.epochs)),
        *("--image-size", "8", "--device", "cpu", "--set", "threads=1", "--out", str(out), *more),
    ]


def test_two_processes_of_one_command(
    tiny_config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main process alone prints and writes."""
    monkeypatch.setenv("PYTHONPATH", str(Path(cli.__file__).parents[1]))
    arguments = command(tiny_config(epochs=1), tmp_path / "run", "--processes", "2")
    assert cli.main(arguments) == 0
    said = capfd.readouterr()
    assert said.err == "" and said.out.count("epoch 1/1") == 1 and said.out.count("test top-1") == 1
    assert "training on 2 processes" in (tmp_path / "run" / "log.txt").read_text()
    assert {p.name for p in tmp_path.iterdir()} == {"run", "tiny.py"}


@pytest.mark.slow
def test_a_mistake_that_the_processes_find_is_one_line(
    tiny_config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(cli.__file__).parents[1]))
    config = tiny_config(epochs=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    for more, message in (
        (["--out", str(tmp_path / "run")], "exists already"),
        (["--out", str(tmp_path / "new"), "--dataset", "cifar10", "--data-root", str(tmp_path)], "cifar"),
    ):
        assert cli.main(["train", "--model", config.model, "--device", "cpu", "--processes", "2", *more]) == 2
        said = capfd.readouterr()
        assert said.out == "" and said.err.startswith("error: ") and message in said.err.lower()
        assert said.err.count("\n") == 1
        assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_torchrun(tiny_config: Config, tmp_path: Path) -> None:
    words = command(tiny_config(epochs=2), tmp_path / "run")
    program = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bnnedge"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", *program, *words], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test top-1") == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 2


def started(config: RunConfig, out: Path) -> subprocess.Popen[str]:
    """Two processes in a group of their own that have finished an epoch."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bnnedge", *command(config, out, "--processes", "2")],
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1]), "STEP_S": "0.05"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while not (out / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


def children(process: subprocess.Popen[str]) -> list[int]:
    return [int(n) for n in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("to_all", [True, False])
def test_control_c_stops_all_processes(to_all: bool, tiny_config: Config, tmp_path: Path) -> None:
    process = started(tiny_config(epochs=5000), tmp_path / "run")
    ranks = children(process)
    assert len(ranks) == 2
    if to_all:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        os.kill(ranks[1], signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    assert errors == "error: interrupted; a training run continues with --resume\n"
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    assert read_checkpoint(tmp_path / "run" / "last.ckpt").epoch >= 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("signal_number", "to_rank", "code"), [(signal.SIGKILL, True, 1), (signal.SIGTERM, False, 128 + signal.SIGTERM)]
)
def test_no_process_is_left_behind(
    signal_number: int, to_rank: bool, code: int, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = started(tiny_config(epochs=5000), tmp_path / "run")
    ranks = children(process)
    os.kill(ranks[1] if to_rank else process.pid, signal_number)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == code
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    if to_rank:
        own, launcher = errors.splitlines()
        assert own.startswith("error: another training process cannot be reached any more; go on with --resume")
        assert launcher == "error: training process 1 was ended by SIGKILL; the run continues with --resume"
