"""Google's LiteRT (the former TensorFlow Lite): runs the float files, and LCE files through a delegate."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ExportError, MissingDependencyError
from bnnedge.export.runtimes.runtime import Images, Runtime, Session
from bnnedge.export.targets.tflite_reader import LCE_OPERATORS, Model, parse_model


class LiteRt(Runtime):
    """The stock ``ai-edge-litert`` interpreter with its default (XNNPACK) kernels."""

    name: ClassVar[str] = "litert"

    @classmethod
    def unavailable(cls) -> str | None:
        return None if find_spec("ai_edge_litert") else "ai-edge-litert is not installed: pip install ai-edge-litert"

    @classmethod
    def version(cls) -> str:
        try:
            return metadata.version("ai-edge-litert")
        except metadata.PackageNotFoundError as error:
            raise MissingDependencyError("ai-edge-litert is not installed: pip install ai-edge-litert") from error

    @classmethod
    def open(cls, data: bytes, threads: int = 1, delegate: Path | None = None) -> LiteRtSession:
        """Load a file's bytes; ``delegate`` is a shared library that runs the LCE operators.

        Raises ``ExportError`` if the bytes are damaged, or hold LCE operators and there is no delegate for them.
        """
        reason = cls.unavailable()
        if reason is not None:
            raise MissingDependencyError(reason)
        model = parse_model(data)
        foreign = sorted({op.code for op in model.operators if op.code in LCE_OPERATORS})
        if foreign and delegate is None:
            raise ExportError(
                f"stock LiteRT does not know {', '.join(foreign)}: run the file in the lce runtime, or give LiteRT a "
                "delegate for LCE's operators"
            )
        return LiteRtSession(model, data, threads, delegate)


class LiteRtSession(Session):
    """A file in the LiteRT interpreter, resized to whatever batch comes in."""

    def __init__(self, model: Model, data: bytes, threads: int, delegate: Path | None) -> None:
        from ai_edge_litert.interpreter import Interpreter, load_delegate

        self._input_shape = model.shape(model.inputs[0])
        try:
            delegates = [load_delegate(str(delegate))] if delegate is not None else None
            self._interpreter: Any = Interpreter(
                model_content=bytes(data), num_threads=threads, experimental_delegates=delegates
            )
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError, OSError) as error:
            raise ExportError(f"LiteRT cannot load the file: {' '.join(str(error).split())}") from error
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]
        self._batch = self._input_shape[0]

    def prepare(self, images: Images) -> NDArray[np.float32]:
        """Images [N, C, H, W] as contiguous NHWC, vectors [N, C] as they are."""
        stored = images.transpose(0, 2, 3, 1) if images.ndim == 4 else images
        if stored.shape[1:] != self._input_shape[1:]:
            raise ExportError(f"the file takes images of {self._input_shape[1:]} (H, W, C), found {stored.shape[1:]}")
        return np.ascontiguousarray(stored, np.float32)

    def invoke(self, prepared: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            if len(prepared) != self._batch:
                self._interpreter.resize_tensor_input(self._input, prepared.shape)
                self._interpreter.allocate_tensors()
                self._batch = len(prepared)
            self._interpreter.set_tensor(self._input, prepared)
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ExportError(f"LiteRT cannot run a batch of {len(prepared)}: {reason}") from error
        output: NDArray[np.float32] = self._interpreter.get_tensor(self._output)
        return output.transpose(0, 3, 1, 2) if output.ndim == 4 else output
