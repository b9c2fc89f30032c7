"""From a trained model to a bit-packed file: graph, passes, targets, verification.

The package itself can be called: ``bnnedge.export(model, example_input, path, target="onnx")`` is
``bnnedge.export.api.export``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

if __name__ != "bnnedge.export":
    raise ImportError("import bnnedge.export, not export: this folder is a part of the bnnedge package")


class _CallablePackage(ModuleType):
    """Lets one name be both the package and the function that the package is for."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from bnnedge.export.api import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
