"""The ONNX target: one file that stock ONNX Runtime runs and that the bnnedge operators speed up."""

from __future__ import annotations

from typing import Any, ClassVar

import onnx

from bnnedge.errors import ExportError
from bnnedge.export.graph import Graph
from bnnedge.export.passes import Pass
from bnnedge.export.passes.fuse_block import fuse_blocks
from bnnedge.export.passes.fuse_stem import fuse_stem
from bnnedge.export.targets.digest import stamp
from bnnedge.export.targets.onnx.forms import FORMS
from bnnedge.export.targets.onnx.reader import describe_model, read_model
from bnnedge.export.targets.onnx.writer import OnnxWriter
from bnnedge.export.targets.target import LayerRow, Target


class OnnxTarget(Target):
    """``.onnx``, opset 18; weights of binary convolutions take one bit each, rounded up to 32 channels.

    Float nodes become standard operators, binary convolutions and what is fused with them those of ``functions.py``.
    The batch dimension is ``N`` in all shapes.
    """

    suffix: ClassVar[str] = ".onnx"
    layout = "NCHW"
    runtimes: ClassVar[tuple[str, ...]] = ("onnxruntime+bnnedge", "onnxruntime")
    judges: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    passes: ClassVar[tuple[Pass, ...]] = (fuse_blocks, fuse_stem)

    def encode(self, graph: Graph) -> bytes:
        writer = OnnxWriter(graph)
        for node in graph.nodes:
            FORMS.write(node, writer)
        model = writer.model()
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            reason = " ".join(str(error).split())
            raise ExportError(f"the graph does not make a valid ONNX file: {reason}") from error
        data: bytes = model.SerializeToString(deterministic=True)
        return stamp(data)

    def read_metadata(self, data: bytes) -> dict[str, Any]:
        return read_model(data)[1]

    def describe(self, data: bytes) -> list[LayerRow]:
        return describe_model(read_model(data)[0])
