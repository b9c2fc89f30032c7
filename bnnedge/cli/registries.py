"""All registries by the name of what they list, and the completion of names from them; neither imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bnnedge.registry import Registry

REGISTRIES = Registry(
    "list",
    [
        ("methods", "bnnedge.methods:METHODS"),
        ("models", "bnnedge.models:MODELS"),
        ("datasets", "bnnedge.data:DATASETS"),
        ("tasks", "bnnedge.tasks:TASKS"),
        ("preprocessings", "bnnedge.data:PREPROCESSINGS"),
        ("augmentations", "bnnedge.data:AUGMENTATIONS"),
        ("targets", "bnnedge.export.targets:TARGETS"),
        ("runtimes", "bnnedge.export.runtimes:RUNTIMES"),
        ("devices", "bnnedge.benchmarks.devices:DEVICES"),
    ],
)

Complete = Callable[[str], list[str]]


def complete_words(words: Iterable[str]) -> Complete:
    """Return a completion function for the shell that offers ``words``."""
    offered = list(words)

    def complete(incomplete: str) -> list[str]:
        return [word for word in offered if word.startswith(incomplete)]

    return complete


def complete_names(kind: str, *more: str) -> Complete:
    """Return a completion function that offers the names in the registry ``kind`` and ``more`` words.

    The registry is imported when the shell asks.
    """

    def complete(incomplete: str) -> list[str]:
        return [word for word in (*REGISTRIES.load(kind), *more) if word.startswith(incomplete)]

    return complete
