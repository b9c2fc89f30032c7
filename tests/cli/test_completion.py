"""What a shell is offered for the word at the cursor."""

from __future__ import annotations

import pytest

from bnnedge.benchmarks.devices import DEVICES
from bnnedge.data import DATASETS
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.targets import TARGETS
from bnnedge.methods import METHODS
from bnnedge.models import MODELS
from bnnedge.tasks import TASKS
from tests.cli.command_line import run_python


def offered(line: str) -> tuple[list[str], set[str]]:
    """Return what bash is offered at the end of ``line``, and the modules that were imported for it."""
    code = """
import sys
from bnnedge.cli import main
main([])
print("modules", *sys.modules)
"""
    words = line.split(" ")
    environment = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    lines = run_python(code, _BNNEDGE_COMPLETE="complete_bash", **environment).splitlines()
    assert lines[-1].startswith("modules ")
    return [word for word in lines[:-1] if word], set(lines[-1].split())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bnnedge ", ["train", "evaluate", "export", "summary", "bench", "report", "doctor", "list"]),
        ("bnnedge train --method ", list(METHODS)),
        ("bnnedge train --method b", ["bop", "bop2", "bmd", "bayesbinn", "bnew"]),
        ("bnnedge train --model ", list(MODELS)),
        ("bnnedge train --dataset ", list(DATASETS)),
        ("bnnedge train --task ", list(TASKS)),
        ("bnnedge train --device ", ["auto", "cpu", "cuda"]),
        ("bnnedge train --optimizer a", ["adam", "adamw"]),
        ("bnnedge train --validation-split ", ["own", "none"]),
        ("bnnedge train --rotation-gradient ", ["paper", "authors"]),
        ("bnnedge train --rotation-u", ["--rotation-update"]),
        ("bnnedge train --weight-d", ["--weight-decay"]),
        ("bnnedge export run --target ", list(TARGETS)),
        ("bnnedge evaluate run --runtime ", [*RUNTIMES, "auto"]),
        ("bnnedge evaluate run --split ", ["train", "val", "test"]),
        ("bnnedge bench a.onnx --runtime ", [*RUNTIMES, "auto"]),
        ("bnnedge bench a.onnx --device ", ["local", "ssh://"]),
        ("bnnedge bench a.onnx --data ", [*DATASETS, "random"]),
        ("bnnedge summary res", [name for name in MODELS if name.startswith("res")]),
        ("bnnedge list d", ["datasets", "devices"]),
    ],
)
def test_names_are_completed_without_torch(line: str, words: list[str]) -> None:
    found, modules = offered(line)
    assert sorted(found) == sorted(words)
    assert "torch" not in modules


def test_every_device_is_offered() -> None:
    assert list(DEVICES) == ["local", "ssh"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_can_be_shown(shell: str) -> None:
    code = f"from bnnedge.cli import main; print(main(['--show-completion', {shell!r}]))"
    lines = run_python(code, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").splitlines()
    assert any("_BNNEDGE_COMPLETE=" in line for line in lines)
    assert lines[-1] == "0"
