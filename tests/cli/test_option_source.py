"""Options read from source files are those of the imported dataclasses."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from bnnedge.cli.option_source import Option, read_options
from bnnedge.methods import METHODS
from bnnedge.options import field_docs


@pytest.mark.parametrize("method", METHODS)
def test_the_source_says_what_the_dataclass_is(method: str) -> None:
    options = METHODS.load(method).Options
    hints, docs = typing.get_type_hints(options), field_docs(options)
    expected = [Option(f.name, hints[f.name], f.default, docs[f.name]) for f in dataclasses.fields(options)]
    found = read_options(METHODS.path(method))
    assert list(found) == expected
    assert [type(option.default) for option in found] == [type(option.default) for option in expected]


def test_a_class_without_options_is_refused() -> None:
    with pytest.raises(LookupError, match=r"bnnedge\.methods\.ste defines no class Nope"):
        read_options("bnnedge.methods.ste:Nope")
    with pytest.raises(LookupError, match="names no Options"):
        read_options("bnnedge.methods.ste:SteBinarizer")
