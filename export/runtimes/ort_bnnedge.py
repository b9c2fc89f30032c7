"""ONNX Runtime with the bnnedge operators registered: binary convolutions run bit-packed, all else as in stock."""

from __future__ import annotations

from typing import Any, ClassVar

from bnnedge.errors import MissingDependencyError
from bnnedge.export.runtimes.ort import OnnxRuntime
from bnnedge.kernels import plugins


class OnnxRuntimeBnnedge(OnnxRuntime):
    """``OnnxRuntime`` with the operator library ``bnnedge_onnxruntime``. Results equal stock ONNX Runtime's."""

    name: ClassVar[str] = "onnxruntime+bnnedge"

    @classmethod
    def unavailable(cls) -> str | None:
        try:
            cls.session_options(threads=1)
        except MissingDependencyError as error:
            return str(error)
        return None

    @classmethod
    def session_options(cls, threads: int) -> Any:
        options = super().session_options(threads)
        plugins.register_onnxruntime(options)
        return options
