"""Every command in a ``bash`` block and every ``python`` block of the pages runs, in the order of the page.

All pages share one folder, in which the commands of ``get-started.md`` have run once, with one epoch of training: the
other pages say that they continue there. A command that trains or exports and has run already is not run again.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from bnnedge.cli import main
from tests.docs.markdown import GET_STARTED, PAGES, blocks, commands, name_of

ONCE = ("train", "export")
"""Commands whose outcome stays in the shared folder."""
RUN = {"bash", "python"}
NOT_RUN = {"sh", "text", "cpp"}
Run = Callable[[str], None]


def quickly(command: str) -> list[str]:
    """The arguments of a ``bnnedge`` command, with as little training and measuring as shows that it works."""
    arguments = shlex.split(re.sub(r"(--epochs|--warm-up) \d+", r"\1 1", command))[1:]
    if arguments[0] == "bench":
        arguments += ["--runs", "3", "--warmup", "1"]
    return arguments


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="session")
def ran() -> set[str]:
    """The commands of ``ONCE`` that have run in the shared folder."""
    return set()


@pytest.fixture
def run(folder: Path, ran: set[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in the shared folder, after those of ``get-started.md`` that train and export."""
    monkeypatch.chdir(folder)

    def once(command: str) -> None:
        assert command.startswith("bnnedge "), f"put {command!r} into a block of sh: only bnnedge runs here"
        arguments = quickly(command)
        if arguments[0] in ONCE and command in ran:
            return
        assert main(arguments) == 0, command
        ran.add(command)

    for block in blocks(GET_STARTED):
        if block.language == "bash":
            for command in commands(block):
                if shlex.split(command)[1] in ONCE and "--help" not in command:
                    once(command)
    return once


def runnable() -> list[Path]:
    return [page for page in PAGES if any(block.language in RUN for block in blocks(page))]


@pytest.mark.parametrize("page", runnable(), ids=name_of)
def test_page_runs(page: Path, run: Run, folder: Path) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "bash":
            for command in commands(block):
                run(command)
        elif block.language == "python":
            if block.title:
                (folder / block.title).write_text(block.code, encoding="utf-8")
            # The blank lines make the lines in a traceback those of the page.
            exec(compile("\n" * block.line + block.code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_whether_it_runs(page: Path) -> None:
    for block in blocks(page):
        assert block.language in RUN | NOT_RUN, f"{page}:{block.line}: a block of {block.language or 'no language'}"


def test_every_command_of_the_command_line_is_on_a_page() -> None:
    shown = {
        shlex.split(command)[1]
        for page in PAGES
        for block in blocks(page)
        if block.language == "bash"
        for command in commands(block)
    }
    assert {"train", "export", "bench", "evaluate", "summary", "doctor", "report"} <= shown


@pytest.mark.parametrize("page", [page for page in PAGES if "how-to/" in name_of(page)], ids=name_of)
def test_every_how_to_has_an_example_that_runs(page: Path) -> None:
    assert page.stem == "index" or page in runnable()
