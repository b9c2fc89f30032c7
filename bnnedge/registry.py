"""Registries: tables from names to objects, which are imported when they are asked for.

A registry is a literal table of ``(name, "package.module:Attribute")`` pairs in the ``__init__.py`` of the package it
lists. Nothing is imported until ``load`` is called, so ``bnnedge --help`` stays fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from bnnedge.errors import UnknownNameError


class Registry:
    """A table of lazily loaded objects of one kind, in the order in which they were written down."""

    def __init__(self, kind: str, entries: Iterable[tuple[str, str]]) -> None:
        self.kind = kind
        self._paths: dict[str, str] = {}
        for name, path in entries:
            if name in self._paths:
                raise ValueError(f"{kind} {name!r} is registered twice: {self._paths[name]} and {path}")
            self._paths[name] = path

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def check(self, name: str) -> None:
        """Raise ``UnknownNameError``, listing the known names, unless ``name`` is registered. Imports nothing."""
        if name not in self._paths:
            raise UnknownNameError(f"unknown {self.kind} {name!r}; known: {', '.join(self._paths)}")

    def path(self, name: str) -> str:
        """Return the entry as it was written down, ``package.module:Attribute``. Imports nothing."""
        self.check(name)
        return self._paths[name]

    def load(self, name: str) -> Any:
        """Import and return the object behind ``name``."""
        module, _, attribute = self.path(name).partition(":")
        return getattr(import_module(module), attribute)
