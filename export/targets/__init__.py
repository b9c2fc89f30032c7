"""File formats by name. One folder each; add one and a line here, and the CLI and the tests know it."""

from bnnedge.registry import Registry

TARGETS = Registry(
    "target",
    [
        ("onnx", "bnnedge.export.targets.onnx.target:OnnxTarget"),
        ("lce", "bnnedge.export.targets.tflite.target:LceTarget"),
    ],
)
