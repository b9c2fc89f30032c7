"""The pages of the Python interface: one a package, with every module that has public names and a docstring."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PAGES = {
    "kernels": ("Bits and kernels", "The bit contract, its reference in NumPy, the native kernels and the plug-ins."),
    "binarization": (
        "Binarization",
        "The sign function, its surrogate gradients, scales, and what a method gives a layer.",
    ),
    "layers": ("Layers", "The binary layers that a network is built from, and their deploy form."),
    "tasks": ("Tasks", "What a network must output, its loss and its scores."),
    "data": ("Data", "The contract of a data set, preprocessing, and the data sets."),
    "models": ("Networks", "The record of a network, the networks, and `create_model`."),
    "methods": ("Methods", "The contract of a training method, and the methods."),
    "train": ("Training", "The training loop and what belongs to it."),
    "export": ("Export", "The export graph, the targets that write files, the runtimes, and verification."),
    "benchmarks": ("Benchmarks", "Devices, measurement, benchmark rows and reports."),
}
BASE = "base"
"""The page of the modules that lie in no package."""
_PRIVATE_TO_TRITON = "gpu"
"""Modules of this folder are programs for a GPU, whose arguments are described in their source."""


def pages(package: Path) -> dict[str, str]:
    """Path in the documentation -> Markdown, for every subpackage of ``package`` in ``PAGES`` and the base page."""
    found = {}
    for name, (title, sentence) in PAGES.items():
        folder = package / name
        modules = [module for module in _modules(folder, f"bnnedge.{name}")] if folder.is_dir() else []
        found[f"api/{name}.md"] = _page(title, sentence, modules)
    base = [f"bnnedge.{path.stem}" for path in sorted(package.glob("*.py")) if _is_documented(path)]
    found[f"api/{BASE}.md"] = _page("Settings, files and errors", "The modules that everything else is built on.", base)
    return found


def _modules(folder: Path, dotted: str) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / "__init__.py").is_file() and path.name != _PRIVATE_TO_TRITON:
            yield from _modules(path, f"{dotted}.{path.name}")
        elif path.suffix == ".py" and _is_documented(path):
            yield f"{dotted}.{path.stem}"


def _is_documented(path: Path) -> bool:
    """Whether a module has a public function or class; modules such as ``__main__`` are programs."""
    if path.stem.startswith("_"):
        return False
    tree = ast.parse(path.read_text(encoding="utf-8"))
    definitions = (ast.FunctionDef, ast.ClassDef)
    return any(isinstance(node, definitions) and not node.name.startswith("_") for node in tree.body)


def _page(title: str, sentence: str, modules: list[str]) -> str:
    parts = [f"# {title}", "", sentence, ""]
    for module in modules:
        parts += [f"## {module.removeprefix('bnnedge.')}", "", f"::: {module}", ""]
    return "\n".join(parts)
