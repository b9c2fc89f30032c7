"""Runtimes that execute exported files, by name."""

from bnnedge.registry import Registry

RUNTIMES = Registry(
    "runtime",
    [
        ("onnxruntime", "bnnedge.export.runtimes.ort:OnnxRuntime"),
        ("onnxruntime+bnnedge", "bnnedge.export.runtimes.ort_bnnedge:OnnxRuntimeBnnedge"),
        ("litert", "bnnedge.export.runtimes.litert:LiteRt"),
        ("litert+bnnedge", "bnnedge.export.runtimes.litert_bnnedge:LiteRtBnnedge"),
        ("lce", "bnnedge.export.runtimes.lce:Lce"),
    ],
)
