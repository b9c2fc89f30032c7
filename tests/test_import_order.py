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
    {"options", "files", "memory", "noise", "progress", "schedules", "schema"},
    {"config"},
    {"kernels"},
    {"binarization"},
    {"layers"},
    {"tasks"},
    {"data"},
    {"models"},
    {"methods"},
    {"train"},
    {"export"},
    {"benchmarks"},
    {"cli"},
    {"__main__"},
]

# The same inside a folder, by its dotted name below bnnedge. A folder that stands here gives each of its modules and
# packages a place. "__init__" is the folder's own __init__.py, which is the lowest unless the table gives it a place.
PARTS: dict[str, list[set[str]]] = {
    "kernels": [
        {"layout"},
        {"geometry"},
        {"reference"},
        {"native", "plugins", "gpu"},
        {"flat_bits"},
    ],
    "kernels.gpu": [
        {"reference", "compile_gate", "bits", "gluon_compat"},
        {"pack", "xnor_gemm", "bmma", "bn_statistics"},
        {"unpack", "conv_launch", "bn_clip_pack", "bmma_gemm", "roofline"},
        {"bconv2d", "bmma_conv2d", "int8_dot", "bn_gradient"},
        {"select"},
    ],
    "kernels.native": [{"library", "arrays"}, {"conv", "pack", "pool"}, {"__init__"}],
    "benchmarks": [
        {"environment", "rows", "turns"},
        {"memory"},
        {"devices"},
        {"bench", "doctor", "report"},
        {"ops", "methods"},
        {"gpu", "networks", "continual"},
    ],
    "benchmarks.devices": [{"device"}, {"measuring"}, {"local"}, {"remote"}, {"ssh"}],
    "benchmarks.devices.remote": [{"protocol"}, {"agent", "connection"}, {"remote_device"}],
    "benchmarks.report": [{"scores"}, {"table", "run_log"}, {"picture"}],
    "export": [
        {"graph"},
        {"window", "constant_signs"},
        {"trace", "passes", "description"},
        {"targets"},
        {"runtimes"},
        {"verify_deploy", "verify_stem", "magnitudes"},
        {"replay"},
        {"verify"},
        {"layer_rows", "evaluate"},
        {"summary"},
        {"stem_effect"},
        {"api", "float_twin"},
        {"run"},
        {"__init__"},
    ],
    "export.graph": [
        {"tensor"},
        {"node"},
        {"activation", "arithmetic", "convolution", "pooling", "shape"},
        {"int8"},
        {"fused"},
        {"graph"},
        {"__init__"},
    ],
    "export.trace": [
        {"signature"},
        {"tracer"},
        {"activation", "arithmetic", "convolution", "pooling", "shape"},
        {"__init__"},
    ],
    "export.passes": [
        {"prune"},
        {"fold_affine", "fuse_block", "fuse_stem", "fuse_threshold", "hoist_binarize"},
        {"merge_biases", "merge_duplicates", "quantize_stem"},
        {"__init__"},
    ],
    "export.targets": [{"digest", "forms"}, {"target"}, {"onnx", "tflite"}],
    "export.targets.onnx": [{"functions"}, {"structure"}, {"reader"}, {"writer"}, {"forms"}, {"target"}],
    "export.targets.tflite": [
        {"writer"},
        {"reader"},
        {"layers"},
        {"lowering"},
        {"float_forms"},
        {"bit_forms"},
        {"target"},
    ],
    "export.runtimes": [
        {"runtime", "choose", "child", "forked"},
        {"ort", "tflite"},
        {"litert", "lce"},
        {"ort_bnnedge", "litert_bnnedge"},
        {"isolated"},
    ],
}

TABLES = {"bnnedge": ORDER} | {f"bnnedge.{folder}": groups for folder, groups in PARTS.items()}
RANKS = {
    folder: {name: rank for rank, group in enumerate(groups) for name in group} for folder, groups in TABLES.items()
}


def part_of(name: str, folder: str) -> str:
    """The module or package of ``folder`` that holds dotted ``name``; "__init__" for what the folder itself holds."""
    part = name.removeprefix(folder).lstrip(".").split(".")[0]
    return part if part in RANKS[folder] else "__init__"


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
            names = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "bnnedge")


def back_edges(module: str, path: Path, source: str) -> list[str]:
    """The imports of this file that go against the order, of the package or of a folder in which the file lies."""
    found = []
    for folder, ranks in RANKS.items():
        if not f"{module}.".startswith(f"{folder}."):
            continue
        own = ranks.get(part_of(module, folder), 0)
        for line, name in imported(ast.parse(source), module, path.name == "__init__.py"):
            if name.startswith(f"{folder}.") and ranks.get(part_of(name, folder), 0) > own:
                found.append(f"{path.name}:{line}: {module} imports {name}, which comes later")
    return found


@pytest.mark.parametrize("folder", TABLES)
def test_every_module_has_one_place(folder: str) -> None:
    """Every module has a place, and no place is left of a module that is gone."""
    below = [(name.removeprefix(f"{folder}."), path) for name, path in source_files() if name.startswith(f"{folder}.")]
    own = {"__init__"} & set(RANKS[folder])
    assert {name.split(".")[0] for name, _ in below} == set(RANKS[folder]) - own, f"put right the table of {folder}"
    assert sum(map(len, TABLES[folder])) == len(RANKS[folder]), f"a name stands twice in the table of {folder}"


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


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("bnnedge.kernels.layout", "from bnnedge.kernels import geometry"),
        ("bnnedge.kernels.layout", "from bnnedge.kernels.geometry import Pair"),
        ("bnnedge.kernels.reference", "from . import native"),
        ("bnnedge.kernels.gpu.pack", "from bnnedge.kernels.flat_bits import pack_signs"),
        ("bnnedge.kernels.gpu.pack", "import bnnedge.kernels.flat_bits"),
    ],
)
def test_a_back_edge_inside_a_folder_is_found(module: str, source: str) -> None:
    assert len(back_edges(module, Path("file.py"), source)) == 1


def test_forward_edges_inside_a_folder_pass() -> None:
    source = (
        "from bnnedge.kernels import layout, something\nfrom bnnedge.kernels.layout import pack\nimport bnnedge.kernels"
    )
    assert back_edges("bnnedge.kernels.geometry", Path("geometry.py"), source) == []


def test_forward_edges_pass() -> None:
    source = (
        "import torch\nimport bnnedge\nfrom bnnedge.kernels import layout\nfrom . import other\nimport bnnedge.data.x"
    )
    assert back_edges("bnnedge.models.vgg", Path("vgg.py"), source) == []
