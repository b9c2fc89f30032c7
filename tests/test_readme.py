"""The README's commands and code run, and what it names exists."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from bnnedge.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_make_targets_exist() -> None:
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, flags=re.MULTILINE))
    assert {"demo", "test", "test-slow", "lint"} <= named
    for target in named:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("bnnedge ")]
    assert {shlex.split(c)[1] for c in commands} == {
        "train",
        "export",
        "bench",
        "evaluate",
        "summary",
        "list",
        "doctor",
    }
    for command in commands:
        arguments = shlex.split(re.sub(r"--epochs \d+", "--epochs 1", command))[1:]
        if arguments[0] == "bench":
            arguments += ["--runs", "3", "--warmup", "1"]
        assert main(arguments) == 0, command


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), names)
    assert "verified in onnxruntime on 64 images" in capsys.readouterr().out
    assert (tmp_path / "net.onnx").stat().st_size > 0


def test_paths_exist() -> None:
    paths = {p for p in re.findall(r"`((?:bnnedge|kernels|export)/[\w/]+\.py)`?", README) if "yours" not in p}
    assert "kernels/layout.py" in paths
    for path in paths:
        assert (ROOT / path).is_file(), path
