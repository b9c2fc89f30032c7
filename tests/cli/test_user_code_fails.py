"""User code that fails ends in one line with the user's own line, before a run folder is made wherever possible."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from bnnedge.cli import main
from bnnedge.errors import BnnedgeWarning
from tests.cli.command_line import Capture, fails

NET = """
import sys
import torch
from torch import nn

CALLS = 0

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        global CALLS
        CALLS += 1
        y = self.head(self.layers(x).mean((2, 3)))
        {line}
        return y
"""
TRAIN = ["train", "--model", "net.py:Net", "--image-size", "8", "--epochs", "2", "--batch-size", "629", "--out", "run"]
LINE = 18


@pytest.mark.parametrize(
    ("line", "said"),
    [
        *((f"raise {e}('why')", f"{e}: why") for e in ("AttributeError", "NameError", "AssertionError", "MemoryError")),
        ("raise KeyError('why')", "KeyError: 'why'"),
        ("raise type('Own', (Exception,), {})('why')", "Own: why"),
        ("sys.exit()", "it ended Python (SystemExit)"),
        ("sys.exit('bye')", "it ended Python (SystemExit: bye)"),
        ("self.forward(x)", "RecursionError"),
        ("if self.training: raise RuntimeError('why')", "RuntimeError: why"),
        ("if self.training: sys.exit(0)", "it ended Python (SystemExit: 0)"),
    ],
)
def test_a_network_that_fails_is_one_line_and_leaves_no_folder(line: str, said: str, capsys: Capture) -> None:
    Path("net.py").write_text(NET.replace("{line}", line))
    fails(TRAIN, said, capsys)
    if "Recursion" not in said:
        fails(TRAIN, f"net.py:{LINE}: in forward", capsys)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "line",
    [
        "y = y.detach()",
        "y = y.long()",
        "y = y[:, :3] if self.training else y",
        "y = y[0] if self.training else y",
        "y = (y, y) if self.training else y",
        "y = y.sigmoid(); y += torch.randn_like(y); y.exp_(); y = y * 1; y.data = y.data[:1]",
    ],
)
def test_a_network_that_cannot_do_a_step_is_found_before_the_run(line: str, capsys: Capture) -> None:
    Path("net.py").write_text(NET.replace("{line}", line))
    fails(TRAIN, "model", capsys)
    assert not Path("run").exists()


def test_a_network_that_fails_later_leaves_a_run_that_can_go_on(capsys: Capture) -> None:
    Path("net.py").write_text(NET.replace("{line}", "if CALLS == 9: raise KeyError('late')"))
    fails(TRAIN, f"net.py:{LINE}: in forward: KeyError: 'late'", capsys)
    assert Path("run/last.ckpt").exists()
    assert main(["train", "--out", "run", "--resume"]) == 0


def test_warnings_are_lines_and_those_of_libraries_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def warn(_: str) -> None:
        for _ in range(2):
            warnings.warn("two\nlines \x1b[2J", BnnedgeWarning, stacklevel=1)
        warnings.warn("of a library", UserWarning, stacklevel=1)
        raise KeyboardInterrupt

    monkeypatch.setattr("bnnedge.cli.registries.REGISTRIES.load", warn)
    assert main(["list", "methods"]) == 130
    assert capsys.readouterr().err == "warning: two lines \\x1b[2J\nerror: interrupted\n"
    assert main(["list", "methods", "--debug"]) == 130
    assert "UserWarning: of a library\n" in capsys.readouterr().err
