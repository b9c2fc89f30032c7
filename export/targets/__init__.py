"""File formats by name. One file each; add a file and a line here, and the CLI and the tests know it."""

from bnnedge.registry import Registry

TARGETS = Registry(
    "target",
    [
        ("onnx", "bnnedge.export.targets.to_onnx:OnnxTarget"),
        ("lce", "bnnedge.export.targets.to_lce:LceTarget"),
    ],
)
