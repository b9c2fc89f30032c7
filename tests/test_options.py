"""Options: conversion from text to the annotated types, and the sentences under fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from bnnedge.errors import ConfigError
from bnnedge.options import field_docs, fill


@dataclass
class Everything:
    flag: bool = False
    """A switch."""
    count: int = 1
    """A number
    of things."""
    rate: float = 0.5
    name: str = "x"
    choice: Literal["a", "b"] = "a"
    maybe: int | None = None
    steps: tuple[int, ...] = ()
    part: Literal["own", "none"] | float = "own"
    size: tuple[int, ...] | None = None
    names: tuple[str, ...] = ()


@dataclass
class Empty:
    pass


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("flag", "true", True),
        ("flag", "False", False),
        ("flag", "on", True),
        ("flag", "0", False),
        ("flag", True, True),
        ("count", "12", 12),
        ("count", "-3", -3),
        ("count", 4, 4),
        ("count", 4.0, 4),
        ("rate", "1e-3", 0.001),
        ("rate", "2", 2.0),
        ("rate", 3, 3.0),
        ("name", "true", "true"),
        ("choice", "b", "b"),
        ("maybe", "none", None),
        ("maybe", None, None),
        ("maybe", "7", 7),
        ("steps", "10,20", (10, 20)),
        ("steps", "10", (10,)),
        ("steps", "", ()),
        ("steps", [1, 2], (1, 2)),
        ("steps", 5, (5,)),
        ("steps", " 10 , 20 ", (10, 20)),
        ("part", "none", "none"),
        ("part", "own", "own"),
        ("part", "0.25", 0.25),
        ("part", 1, 1.0),
        ("size", "none", None),
        ("size", None, None),
        ("size", 32, (32,)),
        ("size", "32", (32,)),
        ("size", "32x64", (32, 64)),
        ("size", "32 x 64", (32, 64)),
        ("size", "32,64", (32, 64)),
        ("size", [32, 64], (32, 64)),
        ("names", "ox,fox", ("ox", "fox")),
    ],
)
def test_text_becomes_the_annotated_type(name: str, text: Any, value: Any) -> None:
    found = getattr(fill(Everything, {name: text}, "test"), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("flag", "maybe"),
        ("flag", 1),
        ("count", "2.5"),
        ("count", 2.5),
        ("count", "x"),
        ("count", True),
        ("count", ""),
        ("count", None),
        ("rate", "fast"),
        ("rate", "nan"),
        ("rate", "inf"),
        ("rate", False),
        ("name", 3),
        ("choice", "c"),
        ("maybe", "x"),
        ("steps", "1,x"),
        ("steps", "1,2.5"),
        ("steps", "1,"),
        ("steps", None),
        ("part", None),
        ("part", "most"),
        ("part", "nan"),
        ("size", "32x"),
        ("size", "axb"),
        ("size", {"height": 3}),
    ],
)
def test_a_wrong_type_names_the_option_and_the_value(name: str, text: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be") as caught:
        fill(Everything, {name: text}, "test")
    assert "\n" not in str(caught.value)


def test_a_wrong_type_lists_all_that_would_do() -> None:
    with pytest.raises(ConfigError, match=r"^part must be one of own, none, or a finite number, got 'most'$"):
        fill(Everything, {"part": "most"}, "test")
    with pytest.raises(ConfigError, match=r"^size must be a whole number, or several with commas between, got '32x'$"):
        fill(Everything, {"size": "32x"}, "test")


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="method m has no option 'speed'; it has: flag, count, rate, name"):
        fill(Everything, {"speed": "1"}, "method m")
    with pytest.raises(ConfigError, match="it has: none"):
        fill(Empty, {"speed": "1"}, "method m")


def test_field_docs_are_the_sentences_under_the_fields() -> None:
    assert field_docs(Everything) == {"flag": "A switch.", "count": "A number of things."}
