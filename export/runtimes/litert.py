"""Google's LiteRT, the former TensorFlow Lite. It runs float files itself, LCE files by bnnedge's delegate."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ExportError, MissingDependencyError
from bnnedge.export.runtimes.forked import never_drop_in_forked_processes
from bnnedge.export.runtimes.tflite import TfliteRuntime, TfliteSession
from bnnedge.export.targets.tflite.reader import LCE_OPERATORS, Model, parse_model
from bnnedge.kernels.plugins import litert_delegate
from bnnedge.noise import without_noise


class LiteRt(TfliteRuntime):
    """The stock ``ai-edge-litert`` interpreter with its default (XNNPACK) kernels.

    A file with LCE's operators runs with the delegate of ``kernels/cpp/tflite`` beside them. ``kernel`` names the
    delegate's implementation of the binary convolution; None is the fastest.
    """

    name: ClassVar[str] = "litert"
    kernel: ClassVar[str | None] = None
    delegates: ClassVar[bool] = False
    """Whether files without LCE's operators get the delegate too, which also runs the int8 stems of our files."""

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
    def open(cls, data: bytes, threads: int = 1) -> LiteRtSession:
        """Load a file's bytes.

        Raises ``ExportError`` if they are damaged, ``MissingDependencyError`` without LiteRT or, for a file with LCE's
        operators, without the delegate.
        """
        reason = cls.unavailable()
        if reason is not None:
            raise MissingDependencyError(reason)
        model = parse_model(data)
        foreign = sorted({op.code for op in model.operators if op.code in LCE_OPERATORS})
        if not foreign and not cls.delegates:
            return LiteRtSession(model, data, threads)
        try:
            delegate = litert_delegate(threads, kernel=cls.kernel)
        except MissingDependencyError as error:
            if not foreign:
                raise
            raise MissingDependencyError(f"stock LiteRT does not know {', '.join(foreign)}, and {error}") from error
        return LiteRtSession(model, data, threads, delegate)


class LiteRtSession(TfliteSession):
    """A file in the LiteRT interpreter, resized to whatever batch comes in."""

    def __init__(self, model: Model, data: bytes, threads: int, delegate: Any = None) -> None:
        from ai_edge_litert.interpreter import Interpreter

        super().__init__(model)
        try:
            with without_noise():
                self._interpreter: Any = never_drop_in_forked_processes(
                    Interpreter(
                        model_content=bytes(data),
                        num_threads=threads,
                        experimental_delegates=None if delegate is None else [delegate],
                    )
                )
                self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError, OSError) as error:
            raise ExportError(f"LiteRT cannot load the file: {' '.join(str(error).split())}") from error
        self._inputs = [details["index"] for details in self._interpreter.get_input_details()]
        self._outputs = [output["index"] for output in self._interpreter.get_output_details()]
        self._batch: int | None = self._shapes[self.input_names[0]][0]

    def stored_outputs(self, prepared: list[NDArray[np.float32]]) -> list[NDArray[Any]]:
        batch = len(prepared[0])
        try:
            if batch != self._batch:
                self._batch = None  # until all of this has succeeded
                for tensor, values in zip(self._inputs, prepared, strict=True):
                    self._interpreter.resize_tensor_input(tensor, values.shape)
                self._interpreter.allocate_tensors()
                self._batch = batch
            for tensor, values in zip(self._inputs, prepared, strict=True):
                self._interpreter.set_tensor(tensor, values)
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split()) or "it does not say why; try a smaller batch"
            raise ExportError(f"LiteRT cannot run a batch of {batch}: {reason}") from error
        return [self._interpreter.get_tensor(output) for output in self._outputs]
