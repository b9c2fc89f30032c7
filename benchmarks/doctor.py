"""``bnnedge doctor``: what was found on this machine, and what is missing."""

from __future__ import annotations

import os
from importlib import metadata

import torch

from bnnedge.benchmarks.environment import read_environment
from bnnedge.errors import MissingDependencyError
from bnnedge.export.runtimes import RUNTIMES
from bnnedge.kernels import native, plugins

OPTIONAL_PACKAGES = ("larq-compute-engine", "tensorflow", "triton")


def doctor() -> list[tuple[str, str]]:
    """(what, what was found) in the order in which a person would ask. Measures nothing."""
    machine = read_environment()
    found = [
        ("machine", f"{machine.cpu}, {machine.cores} cores; {machine.os}"),
        ("CPU features", ", ".join(machine.cpu_flags) or "none of those that the kernels use"),
        ("versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items())),
        ("GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none that PyTorch sees"),
        *_kernels(),
    ]
    for name in (plugins.LITERT_DELEGATE, plugins.ONNXRUNTIME_OPERATORS):
        found.append((f"plug-in {name}", plugins.unavailable(name) or str(plugins.library_path(name))))
    for name in RUNTIMES:
        runtime = RUNTIMES.load(name)
        found.append((f"runtime {name}", runtime.unavailable() or runtime.version()))
    return found + [(f"package {name}", _version(name)) for name in OPTIONAL_PACKAGES]


def _kernels() -> list[tuple[str, str]]:
    """The native kernels that this CPU runs, the one in use first, and the one of int8 stems that goes with it."""
    try:
        names = native.kernel_names()
    except MissingDependencyError as error:
        return [("kernels", str(error))]
    asked = os.environ.get("BNNEDGE_KERNEL")
    if asked and asked not in names:
        return [("kernels", f"BNNEDGE_KERNEL={asked} does not run here; these do: {', '.join(names)}")]
    chosen, override = asked or names[0], " (BNNEDGE_KERNEL)" if asked else ""
    others = ", ".join(name for name in names if name != chosen)
    return [
        ("kernels", f"{chosen}{override}; also there: {others}"),
        ("kernel of int8 stems", f"{native.stem_kernel_name(chosen)}{override}"),
    ]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
