"""Bit-packed kernels: the bit contract, the reference, and the fast implementations.

``KERNELS`` lists the implementations of the packed convolution on the CPU; all have the signature and the results of
``bnnedge.kernels.reference.bconv2d``.
"""

if __name__ != "bnnedge.kernels":
    raise ImportError("import bnnedge.kernels, not kernels: this folder is a part of the bnnedge package")

from collections.abc import Callable
from importlib import import_module
from typing import Any

from bnnedge.registry import Registry

KERNELS = Registry(
    "kernel",
    [
        ("native", "bnnedge.kernels.native:bconv2d"),
        ("reference", "bnnedge.kernels.reference:bconv2d"),
    ],
)


def select_bconv2d(name: str = "auto") -> Callable[..., Any]:
    """The ``bconv2d`` called ``name``; ``auto`` is ``native`` where it was built, else ``reference``.

    Raises ``UnknownNameError``; a ``native`` that was not built raises ``MissingDependencyError`` when called.
    """
    if name == "auto":
        name = "native" if import_module("bnnedge.kernels.native").available() else "reference"
    return KERNELS.load(name)  # type: ignore[no-any-return]
