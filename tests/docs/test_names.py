"""What the pages name exists: options of commands, targets of make, files, and words of tables."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from docs.generate.command_line import help_of
from tests.conftest import ROOT
from tests.docs.markdown import PAGES, blocks, commands, name_of

OPTION = re.compile(r"--[a-z][a-z0-9-]*")
MODULE_COMMAND = re.compile(r"python -m (bnnedge\.benchmarks\.\w+)((?: \S+)*)")
_STOP = re.compile(r"[|&;]|\s>\s")


def bnnedge_commands(page: Path) -> Iterator[list[str]]:
    """The words behind ``bnnedge`` of every command in a block or in inline code of a page."""
    text = [c for block in blocks(page) if block.language in ("bash", "sh") for c in commands(block)]
    text += re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    for command in text:
        found = re.match(r"(?:torchrun .*-m )?bnnedge (.*)", _STOP.split(command)[0])
        if found:
            yield shlex.split(found[1])


@cache
def options_of(*words: str) -> frozenset[str]:
    return frozenset(OPTION.findall(help_of(*words)))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_exist(page: Path) -> None:
    for words in bnnedge_commands(page):
        known = options_of() if words[0].startswith("--") else options_of(words[0]) | options_of()
        named = {word.partition("=")[0] for word in words if OPTION.match(word)}
        assert named <= known, f"bnnedge {' '.join(words)}"


@cache
def benchmark_help(module: str, *words: str) -> str:
    """What ``python -m MODULE WORDS --help`` prints; in this process, which has PyTorch already."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [module, *words, "--help"])
        patch.setenv("COLUMNS", "200")
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            assert not ended.code
    return printed.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_of_benchmarks_exist(page: Path) -> None:
    for module, rest in MODULE_COMMAND.findall(page.read_text(encoding="utf-8")):
        words = shlex.split(rest.replace("`", " ").split(" ...")[0])
        named = {word for word in words if OPTION.match(word)}
        if named:
            subcommand = [words[0]] if words and not words[0].startswith("-") else []
            assert named <= set(OPTION.findall(benchmark_help(module, *subcommand))), f"{module} {rest}"


def test_make_targets_exist() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z0-9-]*)", text, flags=re.MULTILINE))
    assert {"demo", "test", "test-slow", "lint", "docs", "wheels"} <= named
    for target in named:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_exist(page: Path) -> None:
    folders = "bnnedge|kernels|export|benchmarks|examples|tests|docs"
    for path in re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text(encoding="utf-8")):
        if "NAME" not in path and "stripes" not in path:
            assert (ROOT / path).exists(), path


def test_links_of_the_top_pages_exist() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "examples" / "README.md"):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"
