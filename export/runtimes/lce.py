"""Larq Compute Engine's own interpreter, which exported LCE files are verified in.

Its Python package imports TensorFlow, its interpreter extension does not; so that extension is loaded by its path.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from importlib import metadata
from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ExportError, MissingDependencyError
from bnnedge.export.runtimes.tflite import TfliteRuntime, TfliteSession
from bnnedge.export.targets.tflite.layers import binary_layers
from bnnedge.export.targets.tflite.reader import Model, parse_model
from bnnedge.noise import without_noise

Kernel = Literal["default", "indirect", "reference"]
_PACKAGE = "larq_compute_engine"
_EXTENSION = "interpreter_wrapper_lite"


class Lce(TfliteRuntime):
    """The interpreter of larq-compute-engine 0.16.

    ``kernel`` chooses the implementation of the binary convolution: ``default`` is LCE's BGEMM, ``indirect`` its
    indirect BGEMM (single-threaded, the fastest on x86), ``reference`` a plain loop. The default kernel refuses grouped
    convolutions; files that hold one run with ``indirect`` instead.
    """

    name: ClassVar[str] = "lce"
    kernel: ClassVar[Kernel] = "default"

    @classmethod
    def unavailable(cls) -> str | None:
        spec = find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            return (
                "larq-compute-engine is not installed: pip install 'bnnedge[lce]' (it has wheels for CPython 3.10-3.12 "
                f"on x86-64 and macOS; this is CPython {platform.python_version()} on "
                f"{platform.system()} {platform.machine()})"
            )
        if int(np.__version__.split(".")[0]) >= 2:
            return f"LCE's interpreter works with numpy 1.26 only, found {np.__version__}: pip install 'numpy<2'"
        if _extension_path() is None:
            return "larq-compute-engine lacks its interpreter: pip install --force-reinstall larq-compute-engine"
        return None

    @classmethod
    def version(cls) -> str:
        try:
            return metadata.version("larq-compute-engine")
        except metadata.PackageNotFoundError as error:
            raise MissingDependencyError(cls.unavailable() or "larq-compute-engine has no version") from error

    @classmethod
    def open(cls, data: bytes, threads: int = 1) -> LceSession:
        """Load a file's bytes. Raises ``ExportError`` if they are damaged, ``MissingDependencyError`` without LCE."""
        return LceSession(parse_model(data), data, threads, cls.kernel)


class LceSession(TfliteSession):
    """A file in the LCE interpreter. Batches run image by image: the interpreter's input shape is fixed."""

    def __init__(self, model: Model, data: bytes, threads: int, kernel: Kernel) -> None:
        reason = Lce.unavailable()
        if reason is not None:
            raise MissingDependencyError(reason)
        super().__init__(model)
        if kernel == "default" and any(layer.groups > 1 and not layer.in_float for layer in binary_layers(model)):
            kernel = "indirect"
        self._data = data  # the interpreter reads constants from these bytes
        try:
            with without_noise():
                self._interpreter = _extension().LiteInterpreter(
                    self._data, threads, kernel == "reference", kernel == "indirect", False
                )
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"LCE cannot load the file: {' '.join(str(error).split())}") from error

    def stored_outputs(self, prepared: list[NDArray[np.float32]]) -> list[NDArray[Any]]:
        batch = range(len(prepared[0]))
        results = [self._interpreter.predict([values[i : i + 1] for values in prepared]) for i in batch]
        return [np.concatenate(parts) for parts in zip(*results, strict=True)]


@lru_cache(maxsize=1)
def _extension() -> Any:
    path = _extension_path()
    if path is None:
        raise MissingDependencyError(Lce.unavailable() or "LCE's interpreter is missing")
    loader = ExtensionFileLoader(_EXTENSION, str(path))
    spec = spec_from_file_location(_EXTENSION, path, loader=loader)
    if spec is None:
        raise MissingDependencyError(f"{path} cannot be loaded")
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def _extension_path() -> Path | None:
    spec = find_spec(_PACKAGE)
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((path for folder in folders for path in Path(folder).glob(f"tflite/python/{_EXTENSION}*")), None)
