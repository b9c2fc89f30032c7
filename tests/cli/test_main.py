"""Exit codes, interrupts, and what the command line imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bnnedge import __version__
from bnnedge.cli import main
from bnnedge.cli.registries import REGISTRIES
from bnnedge.errors import CheckpointError, VerificationError
from bnnedge.train.checkpoint import read_checkpoint
from tests.cli.command_line import Capture, fails, run_python, train
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (CheckpointError("two\nlines"), 2, "error: two lines\n"),
        (VerificationError("differs"), 1, "error: differs\n"),
        (OSError(28, "No space left on device", "a.json"), 1, "error: No space left on device: a.json\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_exit_codes(
    error: BaseException, code: int, line: str, debug: bool, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(_: str) -> None:
        raise error

    monkeypatch.setattr(REGISTRIES, "load", fail)
    assert main(["list", "methods", *(["--debug"] if debug else [])]) == code
    output = capsys.readouterr().err
    assert output.endswith(line)
    assert ("Traceback" in output) == (debug and code != 130)


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(REGISTRIES, "load", fail)
    with pytest.raises(ZeroDivisionError):
        main(["list", "methods"])


def test_an_unknown_option_names_near_ones_and_where_to_look(capsys: Capture) -> None:
    fails(["bench", "a.onnx", "--thread", "2"], "bnnedge bench has no option --thread; did you mean --threads?", capsys)
    fails(["train", "--weight-deca", "0"], "did you mean --weight-decay", capsys)
    fails(["train", "--weight-deca", "0"], "`bnnedge train --help` lists all", capsys)
    fails(["evaluate", "run", "--zzz"], "bnnedge evaluate has no option --zzz; `bnnedge evaluate --help`", capsys)


def test_control_c_ends_with_130_and_the_run_can_go_on() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "bnnedge", *train("--epochs", "5000", "--out", "run")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets what it starts in the background ignore interrupts, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not Path("run/last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "error: interrupted; the run continues with --resume\n"
    assert read_checkpoint(Path("run/last.ckpt")).epoch >= 1


@pytest.mark.parametrize("arguments", [["bench", "a.onnx"], ["train", "--out", "run"]])
def test_control_c_speaks_of_resume_only_where_there_is_a_run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bnnedge.benchmarks.bench.bench", interrupted)
    monkeypatch.setattr("bnnedge.train.start.start_run", interrupted)
    assert main(arguments) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize("module", ["typer", "torch", "bnnedge.train.start"])
def test_control_c_during_imports_is_one_line(module: str) -> None:
    """The finder below stands for a user who presses the keys while ``module`` is imported."""
    code = f"""
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
from bnnedge.cli import main
sys.stderr = sys.stdout
print(main(["train", "--epochs", "1"]))
"""
    assert run_python(code).splitlines() == ["error: interrupted", "130"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["train", "--method", "rbnn", "--help"],
        ["train", "--show-nothing"],
        ["list", "methods"],
        ["list", "models"],
        ["list", "datasets"],
        ["list", "tasks"],
        ["list", "targets"],
        ["list", "runtimes"],
        ["list", "devices"],
    ],
    ids=" ".join,
)
def test_help_and_lists_do_not_import_torch(arguments: list[str]) -> None:
    code = f"import sys; from bnnedge.cli import main; main({arguments}); print(*sys.modules)"
    modules = run_python(code).splitlines()[-1].split()
    assert "bnnedge.cli" in modules
    assert not {"torch", "numpy", "onnx", "sklearn", "tensorboard"} & set(modules)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_takes_under_400_ms(arguments: list[str]) -> None:
    timed = f"from bnnedge.cli import main; main({arguments})"
    code = f"import time; t = time.perf_counter(); {timed}; print(time.perf_counter() - t)"
    # The best of three: the limit is about imports, not about what else the machine does.
    assert min(float(run_python(code).split()[-1]) for _ in range(3)) < 0.4


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"bnnedge {__version__}\n"
