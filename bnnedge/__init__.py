"""bnnedge: train binarized neural networks in PyTorch, export their bits, and run them on stock runtimes.

The public functions are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnnedge.export.api import export as export
    from bnnedge.kernels.plugins import litert_delegate as litert_delegate
    from bnnedge.kernels.plugins import register_onnxruntime as register_onnxruntime
    from bnnedge.methods.binarize import binarize as binarize
    from bnnedge.models.create import create_model as create_model

__version__ = "0.1.0"
__all__ = ["__version__", "binarize", "create_model", "export", "litert_delegate", "register_onnxruntime"]

_PUBLIC = {
    "binarize": "bnnedge.methods.binarize",
    "create_model": "bnnedge.models.create",
    "litert_delegate": "bnnedge.kernels.plugins",
    "register_onnxruntime": "bnnedge.kernels.plugins",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name == "export":  # a package that can be called, see its __init__.py
        return import_module("bnnedge.export")
    raise AttributeError(f"module 'bnnedge' has no attribute {name!r}")
