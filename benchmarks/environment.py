"""What machine was measured: everything about it that a latency depends on and a reader will ask for."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, get_type_hints

from bnnedge import __version__
from bnnedge.errors import BenchmarkError
from bnnedge.schema import check

CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512bw",
    "avx512_bitalg",
    "avx512_vpopcntdq",
    "avx512_vnni",
    "avx_vnni",
    "neon",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
"""The instruction sets by which our kernels, or the runtimes that they are compared with, are chosen."""

PACKAGES = ("torch", "numpy", "onnxruntime", "ai-edge-litert", "larq-compute-engine")

_CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")


@dataclass(frozen=True)
class Environment:
    """The machine and the software on it. JSON types only, so that it goes into a benchmark row as it is."""

    machine: str
    """Architecture as the kernel names it: ``x86_64``, ``aarch64``, ..."""
    cpu: str
    """Model name; on boards whose CPU has none, the board's."""
    cores: int
    """Logical CPUs that this process may run on."""
    max_mhz: float | None
    """Highest clock of CPU 0; None where the system does not tell, as in most virtual machines."""
    governor: str | None
    """Frequency governor of CPU 0; None where there is none to read."""
    cpu_flags: list[str]
    """The instruction sets among ``CPU_FLAGS`` that the CPU has."""
    memory_bytes: int | None
    load_1min: float | None
    """Load average over the last minute: near 0 on an idle machine, more if other work disturbed the times."""
    os: str
    python: str
    versions: dict[str, str]
    """Versions of bnnedge and of ``PACKAGES``; packages that are not installed are left out."""
    git_commit: str | None
    """Commit of the checkout that bnnedge runs from, with ``-dirty`` if files differ; None outside a checkout."""
    date_utc: str
    """ISO 8601, to the second."""


def check_environment(environment: Mapping[str, Any], what: str) -> None:
    """Raise ``BenchmarkError``, which begins with ``what``, if an entry is not of the type that ``Environment`` says.

    Entries may be missing, as in rows of earlier versions, and there may be others, such as that of a GPU.
    """
    for name, kind in get_type_hints(Environment).items():
        if name in environment:
            check(environment[name], kind, f"{what}.{name}", BenchmarkError)


def read_environment() -> Environment:
    """Look at this machine now."""
    cpuinfo = _read(Path("/proc/cpuinfo")) or ""
    max_khz = _read(_CPUFREQ / "cpuinfo_max_freq")
    return Environment(
        machine=platform.machine(),
        cpu=cpu_model(cpuinfo, _read(Path("/sys/firmware/devicetree/base/model"))),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        max_mhz=int(max_khz) / 1000 if max_khz else None,
        governor=_read(_CPUFREQ / "scaling_governor"),
        cpu_flags=cpu_flags(cpuinfo),
        memory_bytes=_memory_bytes(),
        load_1min=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        os=f"{_distribution()}, {platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions=_versions(),
        git_commit=git_commit(Path(__file__)),
        date_utc=utc_now(),
    )


def utc_now() -> str:
    """The time as rows hold it, such as ``2025-01-31T12:00:00+00:00``."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def cpu_model(cpuinfo: str, board: str | None) -> str:
    """The CPU's name from the text of /proc/cpuinfo, or ``board`` (device-tree model) where the CPU has no name."""
    return _cpuinfo_field(cpuinfo, "model name") or board or platform.processor() or platform.machine()


def cpu_flags(cpuinfo: str) -> list[str]:
    """The ``CPU_FLAGS`` that the text of /proc/cpuinfo lists, under ``flags`` on x86 and ``Features`` on ARM."""
    present = set((_cpuinfo_field(cpuinfo, "flags") or _cpuinfo_field(cpuinfo, "features") or "").split())
    return [flag for flag in CPU_FLAGS if flag in present]


def git_commit(source: Path) -> str | None:
    """HEAD of the repository that tracks the file ``source``, ``-dirty`` appended if tracked files were changed.

    None if git is missing, or if ``source`` is not tracked: an installed package may lie inside someone else's
    repository, whose commit says nothing about it.
    """
    source = source.resolve()
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return None
    commit = _git(source.parent, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(source.parent, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpuinfo_field(cpuinfo: str, name: str) -> str | None:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() == name:
            return value.strip()
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform(terse=True)


def _versions() -> dict[str, str]:
    found = {"bnnedge": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
