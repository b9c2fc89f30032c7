"""Imports follow the data flow: a file imports only from its own group or an earlier one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bnnedge"

# Lowest first. A new module or package gets its place here.
ORDER: list[set[str]] = [
    {"errors", "registry"},
    {"options", "files", "progress", "schedules"},
    {"config"},
    {"kernels"},
    {"binarization"},
    {"layers"},
    {"models", "data"},
    {"methods"},
    {"train"},
    {"export"},
    {"benchmarks"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, group in enumerate(ORDER) for name in group}


def source_files() -> Iterator[tuple[str, Path]]:
    """(dotted name, path) of every module, the linked folders included (rglob alone does not enter links)."""
    for top in sorted(PACKAGE.iterdir()):
        paths = sorted(top.rglob("*.py")) if top.is_dir() else [top] if top.suffix == ".py" else []
        for path in paths:
            parts = ("bnnedge", *path.relative_to(PACKAGE).with_suffix("").parts)
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import of bnnedge in a module, wherever it stands in the file."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names] if source == "bnnedge" else [source]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "bnnedge")


def back_edges(module: str, path: Path, source: str) -> list[str]:
    """What in this file imports against the order."""
    own = module.split(".")[1]
    found = []
    for line, name in imported(ast.parse(source), module, path.name == "__init__.py"):
        target = name.split(".")[1] if "." in name else ""
        if target in RANK and RANK[target] > RANK[own]:
            found.append(f"{path.name}:{line}: {module} imports {name}, which comes later")
    return found


def test_every_module_has_a_place() -> None:
    tops = {name.split(".")[1] for name, _ in source_files() if name != "bnnedge"}
    assert tops - set(RANK) == set(), "add the new top-level module to ORDER"
    assert {"errors", "kernels", "layers", "export", "benchmarks"} <= tops


@pytest.mark.parametrize(("module", "path"), [pytest.param(m, p, id=m) for m, p in source_files() if m != "bnnedge"])
def test_no_back_edge(module: str, path: Path) -> None:
    assert back_edges(module, path, path.read_text(encoding="utf-8")) == []


def test_the_package_itself_imports_nothing_when_imported() -> None:
    """``bnnedge/__init__.py`` is below everything, so it may import its own parts only when asked, or for checkers."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            assert list(imported(statement, "bnnedge", True)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import bnnedge.export.graph",
        "from bnnedge import export",
        "from bnnedge.export import graph",
        "def f():\n    from bnnedge.train import loop",
        "from ..export import graph",
        "from .. import cli",
    ],
)
def test_a_back_edge_is_found(source: str) -> None:
    assert len(back_edges("bnnedge.models.vgg", Path("vgg.py"), source)) == 1


def test_forward_edges_pass() -> None:
    source = (
        "import torch\nimport bnnedge\nfrom bnnedge.kernels import layout\nfrom . import other\nimport bnnedge.data.x"
    )
    assert back_edges("bnnedge.models.vgg", Path("vgg.py"), source) == []
