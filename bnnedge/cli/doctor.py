"""``bnnedge doctor``."""

from __future__ import annotations


def doctor() -> None:
    """Show what was found on this machine: kernels and the chosen one, plug-ins, runtimes, optional packages, GPU."""
    from bnnedge.benchmarks.doctor import doctor as examine

    for what, found in examine():
        print(f"{what}: {found}")
