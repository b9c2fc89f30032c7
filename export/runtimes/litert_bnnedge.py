"""LiteRT with the bnnedge delegate: binary convolutions run bit-packed, everything else as in stock."""

from __future__ import annotations

from typing import ClassVar

from bnnedge.export.runtimes.litert import LiteRt
from bnnedge.kernels import plugins


class LiteRtBnnedge(LiteRt):
    """``ai-edge-litert`` where the delegate of ``kernels/cpp/tflite`` was built."""

    name: ClassVar[str] = "litert+bnnedge"
    delegates: ClassVar[bool] = True

    @classmethod
    def unavailable(cls) -> str | None:
        return super().unavailable() or plugins.unavailable(plugins.LITERT_DELEGATE)
