"""Options read from source files are those of the imported dataclasses."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

from bnnedge.cli.option_source import Option, read_options
from bnnedge.methods import METHODS
from bnnedge.options import field_docs


def as_imported(options: Any) -> list[Option]:
    hints, docs = typing.get_type_hints(options), field_docs(options)
    return [Option(f.name, hints[f.name], f.default, docs[f.name]) for f in dataclasses.fields(options)]


@pytest.mark.parametrize("method", METHODS)
def test_the_source_says_what_the_dataclass_is(method: str) -> None:
    expected = as_imported(METHODS.load(method).Options)
    found = read_options(METHODS.path(method))
    assert list(found) == expected
    assert [type(option.default) for option in found] == [type(option.default) for option in expected]


def test_a_class_without_options_is_refused() -> None:
    with pytest.raises(LookupError, match=r"bnnedge\.methods\.ste defines no class Nope"):
        read_options("bnnedge.methods.ste:Nope")
    with pytest.raises(LookupError, match="names no Options"):
        read_options("bnnedge.methods.ste:SteBinarizer")


PARTS = '''
from dataclasses import dataclass
from typing import Literal

Kind = Literal["round", "square"]


@dataclass
class Size:
    size: int = 1
    """Size in pixels."""
    shape: Kind = "round"
    """Shape."""
'''
METHOD = '''
from dataclasses import dataclass
from typing import ClassVar

from bnnedge.made_up_parts import Kind, Size

RATES = (0.5, 0.25)


@dataclass
class Weight:
    weight: float = 1.0
    """Weight."""
    size: int = 2
    """Size in channels."""


@dataclass
class MadeUpOptions(Weight, Size):
    """Options of a method."""

    rates: tuple[float, ...] = RATES
    """Rates."""
    shape: Kind | None = None
    limit: ClassVar[int] = 3


class MadeUp:
    Options = MadeUpOptions


class Derived(MadeUp):
    pass
'''


def test_bases_aliases_and_constants_of_other_files_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fields, docs and defaults come in the order of Python's own method resolution."""
    for name, source in (("made_up_parts", PARTS), ("made_up_method", METHOD)):
        file = tmp_path / f"{name}.py"
        file.write_text(source)
        spec = importlib.util.spec_from_file_location(f"bnnedge.{name}", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, f"bnnedge.{name}", module)
        spec.loader.exec_module(module)
    monkeypatch.setattr("bnnedge.cli.option_source._PACKAGE", tmp_path)
    expected = as_imported(module.Derived.Options)
    assert [option.name for option in expected] == ["size", "shape", "weight", "rates"]
    assert list(read_options("bnnedge.made_up_method:Derived")) == expected
