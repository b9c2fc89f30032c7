"""``bnnedge list``."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Annotated, Any

import typer

from bnnedge.cli.registries import REGISTRIES, complete_words
from bnnedge.cli.settings import as_typed, method_settings


def list_names(
    kind: Annotated[
        str,
        typer.Argument(metavar="|".join(REGISTRIES), help="What to list.", autocompletion=complete_words(REGISTRIES)),
    ],
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Add what each is and its options.")] = False,
) -> None:
    """List what can be named in the other commands."""
    registry = REGISTRIES.load(kind)
    for name in registry:
        print(name)
        if verbose:
            for line in _details(kind, name, registry.load(name)):
                print(f"    {line}")


def _details(kind: str, name: str, entry: Any) -> list[str]:
    """Return what an entry says about itself, or the first sentence of its docstring and, of a method, its options."""
    if hasattr(entry, "details"):
        return list(entry.details())
    lines = [(inspect.getdoc(entry) or "").split("\n\n")[0].replace("\n", " ")]
    if inspect.ismethod(getattr(entry, "unavailable", None)):  # a runtime's; a device is asked about one
        reason = entry.unavailable()
        lines.append("available" if reason is None else f"not available: {reason}")
    if kind == "methods":
        defaults = ", ".join(f"{key} {value}" for key, value in asdict(entry.defaults).items())
        lines += [f"paper: {entry.paper}", f"defaults: {defaults}"]
        lines += [f"{s.flag} {as_typed(s.default).lower()}  {s.sentence}" for s in method_settings(name)]
    return lines
