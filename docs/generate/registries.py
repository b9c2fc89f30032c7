"""The pages of what has a name: methods, networks, data sets, targets, runtimes and devices, from their tables."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from bnnedge.benchmarks.devices import DEVICES
from bnnedge.data import DATASETS
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.targets import TARGETS
from bnnedge.methods import METHODS
from bnnedge.models import MODELS
from bnnedge.options import field_docs
from bnnedge.tasks import TASKS

METHODS_INTRODUCTION = """\
# Methods

A method says how a network's binary layers are trained: how weights and inputs become -1 and +1, which gradient takes
the place of the sign's, and what else happens in a step. Every method trains every network. Choose one with
`bnnedge train --method NAME`; its options below are flags of the same command. Where a setting of the run, such as the
learning rate, is not given, the method's own default is used.

Test accuracy and the cost of a training step are measured for all methods in
`benchmarks/results/methods_accuracy.md` and `benchmarks/results/methods_cost.md`.
"""


def pages() -> dict[str, str]:
    """Path in the documentation -> Markdown."""
    return {
        "reference/methods.md": _methods(),
        "reference/networks.md": _networks(),
        "reference/datasets.md": _datasets(),
        "reference/targets.md": _targets(),
    }


def _methods() -> str:
    parts = [METHODS_INTRODUCTION]
    for name in METHODS:
        method = METHODS.load(name)
        parts += [f"## {name}", "", _docstring(method), "", f"*Paper:* {method.paper}", ""]
        defaults = dataclasses.asdict(method.defaults)
        parts += ["Defaults of the run:", ""]
        parts += [", ".join(f"`{key} {_text(value)}`" for key, value in defaults.items()) + ".", ""]
        parts += _options(method.Options)
    return "\n".join(parts)


def _options(options: type[Any]) -> list[str]:
    fields = dataclasses.fields(options)
    if not fields:
        return ["The method has no options of its own.", ""]
    docs = field_docs(options)
    lines = ["| option | default | meaning |", "| --- | --- | --- |"]
    for field in fields:
        flag = f"--{field.name.replace('_', '-')}"
        lines.append(f"| `{flag}` | `{_text(field.default)}` | {_cell(docs.get(field.name, ''))} |")
    return [*lines, ""]


def _networks() -> str:
    return "# Networks\n"


def _datasets() -> str:
    return "# Data sets\n"


def _targets() -> str:
    return "# Targets and runtimes\n"


def _docstring(entry: Any) -> str:
    """The docstring of an entry of a table, as Markdown."""
    return inspect.getdoc(entry) or ""


def _cell(text: str) -> str:
    """``text`` in a cell of a Markdown table, where a vertical bar would end the cell."""
    return text.replace("|", "\\|")


def _text(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "''"
    return str(value).lower()
