"""Registries: lazy, without duplicates, and helpful about unknown names."""

from __future__ import annotations

import sys

import pytest

from bnnedge.errors import UnknownNameError
from bnnedge.registry import Registry

COLORS = [("red", "tests_of_registries:Red"), ("blue", "tests_of_registries:Blue")]


def test_a_name_registered_twice_raises_and_names_both_entries() -> None:
    with pytest.raises(ValueError, match="color 'red' is registered twice: tests_of_registries:Red and other:Crimson"):
        Registry("color", [*COLORS, ("red", "other:Crimson")])


def test_entries_keep_their_order_and_are_not_imported() -> None:
    colors = Registry("color", COLORS)
    assert (list(colors), len(colors)) == (["red", "blue"], 2)
    assert "red" in colors and "green" not in colors
    assert colors.path("blue") == "tests_of_registries:Blue"
    assert "tests_of_registries" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        colors.load("blue")


def test_an_entry_is_loaded_by_name() -> None:
    assert Registry("class", [("registry", "bnnedge.registry:Registry")]).load("registry") is Registry


@pytest.mark.parametrize("use", [Registry.check, Registry.path, Registry.load])
def test_an_unknown_name_lists_the_known_ones(use: object) -> None:
    assert callable(use)
    with pytest.raises(UnknownNameError, match="unknown color 'green'; known: red, blue"):
        use(Registry("color", COLORS), "green")
