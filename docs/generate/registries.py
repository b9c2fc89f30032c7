"""The pages of what has a name: methods, networks, data sets, targets, runtimes and devices, from their tables."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable
from typing import Any

from bnnedge.benchmarks.devices import DEVICES
from bnnedge.data import AUGMENTATIONS, DATASETS, PREPROCESSINGS
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.export.targets import TARGETS
from bnnedge.methods import METHODS
from bnnedge.models import MODELS
from bnnedge.models.network import Network
from bnnedge.options import field_docs
from bnnedge.registry import Registry

METHODS_INTRODUCTION = """\
# Methods

A method says how a network's binary layers are trained: how weights and inputs become -1 and +1, which gradient takes
the place of the sign's, and what else happens in a step. Every method trains every network. Choose one with
`bnnedge train --method NAME`; its options below are flags of the same command. Where a setting of the run, such as the
learning rate, is not given, the method's own default is used.

Test accuracy and the cost of a training step are measured for all methods in
`benchmarks/results/methods_accuracy.md` and `benchmarks/results/methods_cost.md`. For example, to train with options of
RBNN:

```sh
bnnedge train --method rbnn --model resnet20_1w1a --tmin 0.01 --tmax 10
```
"""
NETWORKS_INTRODUCTION = """\
# Networks

A network says where the binary layers are; the method says how they are trained. Choose one with
`bnnedge train --model NAME`, or name [one of your own](../how-to/own-network.md). Counts of parameters are those of the
network itself at the input and the number of classes that it is made for; some methods add parameters of their own.

| network | task | made for | binary weights | parameters |
| --- | --- | --- | ---: | ---: |
"""
DATASETS_INTRODUCTION = """\
# Data sets

Choose one with `bnnedge train --dataset NAME`. `digits` is a part of scikit-learn; the files of all others must lie in
the folder that `--data-root` or the environment variable `BNNEDGE_DATA` names, unpacked as they are published. Nothing
is ever downloaded. How to use your own images is explained in [Use your own data](../how-to/own-data.md).

Each data set has three splits. Training sees the first; the second, validation, picks the best epoch; the third,
test, is measured once at the end and never decides anything. `--validation-split` and `--validate-on` change that, and
the result says so.
"""
TARGETS_INTRODUCTION = """\
# Targets and runtimes

A **target** is a file format that `bnnedge export --target NAME` writes. A **runtime** is a program that runs such
files; `bench` and `evaluate` take the fastest one that is there, or the one that `--runtime NAME` names. A **device**
is where `bench --device NAME` measures.
"""


def pages() -> dict[str, str]:
    """Path in the documentation -> Markdown."""
    return {
        "reference/methods.md": methods(),
        "reference/networks.md": networks(),
        "reference/datasets.md": datasets(),
        "reference/targets.md": targets(),
    }


def methods() -> str:
    """Every method: its docstring with the formulas, its paper, the defaults of a run and its options."""
    parts = [METHODS_INTRODUCTION]
    for name in METHODS:
        method = METHODS.load(name)
        defaults = dataclasses.asdict(method.defaults)
        parts += [f"## {name}", "", _docstring(method), "", f"**Paper:** {method.paper}", ""]
        parts += ["**Defaults of a run:** " + ", ".join(f"`{k} {_text(v)}`" for k, v in defaults.items()), ""]
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


def networks() -> str:
    """Every network's record, first in one table and then in full."""
    records: dict[str, Network] = {name: MODELS.load(name) for name in MODELS}
    parts = [NETWORKS_INTRODUCTION.rstrip("\n")]
    for name, record in records.items():
        made_for = f"{record.channels} x {record.height} x {record.width}, {record.classes} classes"
        counts = f"{record.binary_weights:,} | {record.parameters:,}"
        parts.append(f"| [`{name}`](#{name}) | {record.task} | {made_for} | {counts} |")
    for name, record in records.items():
        parts += ["", f"## {name}", "", record.details()[0], ""]
        # A line that begins with two blanks belongs to the form that the line before names.
        parts += [f"{'    ' if line.startswith('  ') else ''}- {line.strip()}" for line in record.details()[1:]]
    return "\n".join(parts) + "\n"


def datasets() -> str:
    """Every data set, and what images can be changed by."""
    parts = [DATASETS_INTRODUCTION]
    for name in DATASETS:
        load = DATASETS.load(name)
        module = inspect.getmodule(load)
        parts += [f"## {name}", "", _docstring(module), "", _docstring(load), ""]
    parts += ["## Preprocessings", "", "How a stored image becomes the network's input: `--preprocess NAME`.", ""]
    parts += _sentences(PREPROCESSINGS)
    parts += [
        "## Augmentations",
        "",
        "Random changes of training images: `--augment NAME`; `own` is the data set's, ",
    ]
    parts += ["`none` changes nothing.", "", *_sentences(AUGMENTATIONS)]
    return "\n".join(parts)


def targets() -> str:
    """Targets, runtimes and devices."""
    parts = [TARGETS_INTRODUCTION]
    for title, registry in (("Targets", TARGETS), ("Runtimes", RUNTIMES), ("Devices", DEVICES)):
        parts += [f"## {title}", ""]
        for name in registry:
            entry = registry.load(name)
            parts += [f"### {name}", "", _docstring(entry), "", *_target_facts(entry), ""]
    return "\n".join(parts)


def _target_facts(entry: Any) -> Iterable[str]:
    for attribute, text in (("suffix", "Ending"), ("runtimes", "Runs in, fastest first"), ("judges", "Verified in")):
        value = getattr(entry, attribute, None)
        if value:
            yield f"- {text}: {', '.join(f'`{v}`' for v in ([value] if isinstance(value, str) else value))}"


def _sentences(registry: Registry) -> list[str]:
    lines = ["| name | meaning |", "| --- | --- |"]
    for name in registry:
        lines.append(f"| `{name}` | {_cell(' '.join(_docstring(registry.load(name)).split()))} |")
    return [*lines, ""]


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
