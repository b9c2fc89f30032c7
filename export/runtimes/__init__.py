"""Runtimes that execute exported files, by name."""

from bnnedge.registry import Registry

RUNTIMES = Registry(
    "runtime",
    [
        ("onnxruntime", "bnnedge.export.runtimes.ort:OnnxRuntime"),
        ("litert", "bnnedge.export.runtimes.litert:LiteRt"),
        ("lce", "bnnedge.export.runtimes.lce:Lce"),
    ],
)
