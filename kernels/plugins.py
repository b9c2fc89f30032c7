"""The two plug-ins of ``kernels/cpp``: the LiteRT delegate and the ONNX Runtime operator library, found and loaded.

Both are shared libraries that the stock runtimes load by path; ``library_path`` gives that path to anyone who wants to
load them without bnnedge's help, for example from C++ or on a device.
"""

from __future__ import annotations

import atexit
import ctypes
import sys
from contextlib import ExitStack
from functools import cache
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from bnnedge.errors import ConfigError, MissingDependencyError

LITERT_DELEGATE = "bnnedge_litert_delegate"
"""The external delegate that runs Larq Compute Engine's operators in LiteRT (``tflite_plugin_create_delegate``)."""
ONNXRUNTIME_OPERATORS = "bnnedge_onnxruntime"
"""The library of the custom operators of the domain ``bnnedge`` (``RegisterCustomOps``)."""

_SUFFIX = ".dll" if sys.platform == "win32" else ".so"
_RESOURCES = ExitStack()
atexit.register(_RESOURCES.close)


@cache
def library_path(name: str) -> Path:
    """Full path of plug-in ``name``. Raises ``MissingDependencyError`` if it was not built."""
    path = _RESOURCES.enter_context(as_file(files("bnnedge") / "lib" / (name + _SUFFIX)))
    if not path.is_file():
        raise MissingDependencyError(f"plug-in {name} was not built: install a C++17 compiler and reinstall bnnedge")
    return path


def unavailable(name: str) -> str | None:
    """None if plug-in ``name`` was built; else one sentence: what is missing and how to get it."""
    try:
        library_path(name)
    except MissingDependencyError as error:
        return str(error)
    return None


def litert_delegate(threads: int = 1, *, kernel: str | None = None) -> Any:
    """A delegate for ``ai_edge_litert.interpreter.Interpreter(experimental_delegates=[...])``, or TensorFlow's
    ``tf.lite.Interpreter``.

    ``threads`` are those of the binary operators; the interpreter's ``num_threads`` are those of all others. ``kernel``
    is one of the names that ``bnnedge_kernels`` knows, None the fastest (or the environment's ``BNNEDGE_KERNEL``).

    Raises ``MissingDependencyError`` if the delegate was not built or cannot be loaded, ``ConfigError`` for options
    that it refuses.
    """
    path = library_path(LITERT_DELEGATE)
    try:
        interpreter = import_module("ai_edge_litert.interpreter")
    except ImportError as error:
        reason = f"ai-edge-litert cannot be imported ({error})"
        raise MissingDependencyError(f"{reason}: pip install ai-edge-litert") from error
    options = {"threads": threads} | ({} if kernel is None else {"kernel": kernel})
    try:
        ctypes.PyDLL(str(path))  # If this fails, load_delegate leaves a half-made object behind.
        return interpreter.load_delegate(str(path), options)
    except ValueError as error:
        raise ConfigError(_one_line(str(error).partition("\n")[2] or str(error))) from error
    except OSError as error:
        raise MissingDependencyError(
            f"plug-in {LITERT_DELEGATE} cannot be loaded, reinstall bnnedge: {_one_line(error)}"
        ) from error


def register_onnxruntime(session_options: Any) -> None:
    """Make ``bnnedge``'s operators known to every session made with these ``onnxruntime.SessionOptions``.

    Raises ``MissingDependencyError`` if the library was not built or ONNX Runtime cannot load it.
    """
    path = library_path(ONNXRUNTIME_OPERATORS)
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:  # ONNX Runtime has an exception class for each status.
        raise MissingDependencyError(
            f"plug-in {ONNXRUNTIME_OPERATORS} cannot be loaded, reinstall bnnedge: {_one_line(error)}"
        ) from error


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
