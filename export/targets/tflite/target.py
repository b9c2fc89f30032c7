"""The LCE target: a TFLite file with Larq Compute Engine's operators for everything that is bits."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from bnnedge.errors import ExportError
from bnnedge.export.graph import Graph
from bnnedge.export.targets.digest import stamp, with_blank
from bnnedge.export.targets.target import LayerRow, Target
from bnnedge.export.targets.tflite.bit_forms import BIT_FORMS
from bnnedge.export.targets.tflite.float_forms import FLOAT_FORMS
from bnnedge.export.targets.tflite.layers import describe_model
from bnnedge.export.targets.tflite.lowering import Lowering
from bnnedge.export.targets.tflite.reader import METADATA_NAME, REASONS_NAME, read_model


class LceTarget(Target):
    """``.tflite``; weights of binary layers take one bit each, rounded up to 32 channels.

    The inputs are float32 images [1, H, W, C] or vectors [1, C]. A grouped binary convolution stays binary if its
    groups have a multiple of 32 channels; LCE's default kernel refuses it, the indirect and reference kernels run it.
    Others become float convolutions of the exact signs.
    """

    suffix: ClassVar[str] = ".tflite"
    layout = "NHWC"
    runtimes: ClassVar[tuple[str, ...]] = ("litert+bnnedge", "lce", "litert")
    judges: ClassVar[tuple[str, ...]] = ("lce",)

    def encode(self, graph: Graph) -> bytes:
        low = Lowering(graph)
        for node in graph.nodes:
            if node.name in low.fused:
                continue
            forms = BIT_FORMS if node.reads(graph.dtypes(node))[0] == "bits" else FLOAT_FORMS
            forms.write(node, low)
        inputs = [low.tensors[name] for name in graph.inputs]
        outputs = [low.output(name) for name in graph.outputs]
        signature = (graph.inputs, graph.outputs) if max(len(inputs), len(outputs)) > 1 else None
        entries = {METADATA_NAME: with_blank(graph.metadata), REASONS_NAME: low.reasons}
        encoded = {name: _as_json(value) for name, value in entries.items()}
        return stamp(low.writer.finish(inputs, outputs, encoded, signature))

    def read_metadata(self, data: bytes) -> dict[str, Any]:
        return read_model(data)[1]

    def describe(self, data: bytes) -> list[LayerRow]:
        return describe_model(read_model(data)[0])


def _as_json(value: dict[str, Any]) -> bytes:
    try:
        return json.dumps(value).encode()
    except (TypeError, ValueError) as error:
        raise ExportError(f"the metadata of the graph must be plain JSON values: {error}") from error
