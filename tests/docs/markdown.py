"""The Markdown pages of the project and the code blocks in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

DOCS = ROOT / "docs"
GET_STARTED = DOCS / "get-started.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>.*)$")


@dataclass(frozen=True)
class Block:
    """One fenced block of code."""

    language: str
    title: str
    """The file that the block is the content of; empty if it is none."""
    code: str
    line: int
    """Line of the page, from 1, in which the block begins."""


def name_of(page: Path) -> str:
    """The page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    opened: re.Match[str] | None = None
    start, lines = 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if fence and opened is None:
            opened, start, lines = fence, number, []
        elif fence and opened is not None and not fence["info"].strip():
            language, _, rest = opened["info"].partition(" ")
            title = re.search(r'title="([^"]*)"', rest)
            found.append(Block(language, title[1] if title else "", "\n".join(lines) + "\n", start))
            opened = None
        elif opened is not None:
            lines.append(line.removeprefix(opened["indent"]))
    assert opened is None, f"{page}: the block that begins in line {start} has no end"
    return found


def commands(block: Block) -> list[str]:
    """The commands of a shell block; a line that ends in a backslash goes on in the next one."""
    joined = re.sub(r"\\\n\s*", "", block.code)
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
