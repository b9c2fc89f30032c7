"""Runs that are killed at random moments, also inside of a write, and resumed until they end, give the same weights.

Each case is seeded. ``KILL_AT="SIGTERM 7"`` in the environment of a training process lets it send itself that signal in
its seventh ``fsync``: every file of a run goes through one before it takes its name.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

import bnnedge
from bnnedge.config import RunConfig
from bnnedge.train.checkpoint import read_checkpoint
from tests.train.same_run import assert_same_run

Config = Callable[..., RunConfig]

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
EPOCHS = 8
MOST_KILLS_OF_A_RUN = 4
CASES = {
    "ste": (17, 1, ["--ema", "0.9", "--optimizer", "adamw"]),
    "xnor": (17, 1, []),
    "rbnn": (17, 1, []),
    "bop2": (17, 1, []),
    "bayesbinn": (16, 2, []),
    "bmd": (16, 2, ["--optimizer", "sgd"]),
}
"""Method -> kills, processes, more of the command line."""

KILL_AT = """
import os, signal
if "KILL_AT" in os.environ and os.environ.get("RANK", "0") == "0":
    name, left = os.environ.pop("KILL_AT").split()
    left, fsync = int(left), os.fsync
    def counted(file):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), getattr(signal, name))
        fsync(file)
    os.fsync = counted
"""


class Killer:
    """Starts, kills and resumes runs of one method."""

    def __init__(self, method: str, processes: int, more: list[str], config: RunConfig, folder: Path) -> None:
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(KILL_AT)
        path = os.pathsep.join((str(folder / "site"), str(Path(bnnedge.__file__).parents[1])))
        self.environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "STEP_S": "0.003"}
        self.processes = processes
        self.words = [
            *(sys.executable, "-m", "bnnedge", "train", "--method", method, "--model", config.model, *more),
            *("--epochs", str(EPOCHS), "--image-size", "8", "--device", "cpu", "--threads", "1", "--seed", "3"),
            *(("--processes", str(processes)) if processes > 1 else ()),
        ]

    def run(self, out: Path, kill: Callable[[subprocess.Popen[str]], None] | None, kill_at: str = "") -> bool:
        """Train in ``out``, from the beginning or from where it stands; whether it was killed."""
        resume = ["--resume"] if out.exists() else []
        process = subprocess.Popen(
            [*self.words, "--out", str(out), *resume],
            env=self.environment | ({"KILL_AT": kill_at} if kill_at else {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        if kill is not None:
            kill(process)
        _, errors = process.communicate(timeout=300)
        killed = process.returncode != 0
        assert killed or not errors, errors
        assert "Traceback" not in errors, errors
        if killed:
            assert kill is not None or kill_at, errors
            for name in ("last.ckpt", "best.ckpt"):
                assert not (out / name).exists() or read_checkpoint(out / name).epoch >= 1
        return killed


def killed_in(log: Path, seconds: float, number: signal.Signals) -> Callable[[subprocess.Popen[str]], None]:
    """Send the signal ``seconds`` after the process has begun or resumed to train."""
    before = log.read_text().count("resumed") if log.exists() else 0

    def kill(process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 120
        ready = log if log.exists() else log.parent / "config.yaml"
        while process.poll() is None and time.monotonic() < deadline:
            if ready.exists() and (ready != log or log.read_text().count("resumed") > before):
                break
            time.sleep(0.005)
        time.sleep(seconds)
        if process.poll() is None:
            process.send_signal(number)

    return kill


def kill_until(kills: int, killer: Killer, random: Random, folder: Path) -> None:
    """Kill runs ``kills`` times in all; each must end like the one that nobody killed."""
    killer.run(folder / "whole", None)
    done = number = 0
    while done < kills:
        number += 1
        run = folder / f"run {number}"
        for _ in range(MOST_KILLS_OF_A_RUN):
            signal_number = random.choice(SIGNALS)
            if random.random() < 0.5:
                killed = killer.run(run, None, f"{signal_number.name} {random.randrange(1, 30)}")
            else:
                killed = killer.run(run, killed_in(run / "log.txt", random.uniform(0, 0.6), signal_number))
            done += killed
            if not killed or done == kills:
                break
        if not (run / "result.json").exists():
            killer.run(run, None)
        assert_same_run(folder / "whole", run)
        assert not list(run.glob(".*")), "unfinished files are left"


@pytest.mark.skipif(sys.platform != "linux", reason="signals of Linux")
def test_two_kills_and_equal_weights(tiny_config: Config, tmp_path: Path) -> None:
    kill_until(2, Killer("ste", 1, [], tiny_config(), tmp_path), Random(1), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signals of Linux")
@pytest.mark.parametrize("method", CASES)
def test_a_hundred_kills_and_equal_weights(method: str, tiny_config: Config, tmp_path: Path) -> None:
    kills, processes, more = CASES[method]
    kill_until(kills, Killer(method, processes, more, tiny_config(), tmp_path), Random(method), tmp_path)
