"""``bnnedge list``."""

from __future__ import annotations

import pytest

from bnnedge.cli import main
from bnnedge.cli.registries import REGISTRIES
from bnnedge.methods import METHODS
from bnnedge.models import MODELS
from bnnedge.options import field_docs
from tests.cli.command_line import Capture


@pytest.mark.parametrize("kind", REGISTRIES)
def test_lists_are_the_registries(kind: str, capsys: Capture) -> None:
    assert main(["list", kind]) == 0
    assert capsys.readouterr().out.split() == list(REGISTRIES.load(kind))


@pytest.mark.parametrize("kind", REGISTRIES)
def test_verbose_lists_say_what_each_is(kind: str, capsys: Capture) -> None:
    assert main(["list", kind, "--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in REGISTRIES.load(kind):
        assert len(lines[lines.index(name) + 1].strip()) > 10
    if kind == "methods":
        assert sum(line.strip().startswith("paper: ") for line in lines) == len(list(METHODS))
        docs = field_docs(METHODS.load("rbnn").Options)
        assert f"    --tmin 0.01  {docs['tmin']}" in lines
        assert f"    --a32/--no-a32 false  {docs['a32']}" in lines


def test_an_entry_that_describes_itself_is_listed_in_its_own_words(capsys: Capture) -> None:
    """An entry may print its own lines, as networks do, whose records know more than a docstring."""
    assert main(["list", "models", "-v"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name in MODELS:
        details = MODELS.load(name).details()
        start = lines.index(name) + 1
        assert lines[start : start + len(details)] == [line.strip() for line in details]
