"""All engines, and the two that need no file: our C++ kernels and PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.benchmarks.ops.engine import CHAIN, Engine, Prepared, signs
from bnnedge.benchmarks.ops.onnx_engine import OnnxRuntime
from bnnedge.benchmarks.ops.shapes import ConvShape
from bnnedge.benchmarks.ops.tflite_engines import LceEngine, LiteRt
from bnnedge.errors import BenchmarkError
from bnnedge.export.runtimes.lce import Kernel
from bnnedge.kernels import native
from bnnedge.kernels.geometry import BConv2dGeometry
from bnnedge.kernels.layout import pack


def aligned(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An empty array at a multiple of 64 bytes, as the runtimes lay out their tensors and NumPy does not."""
    room = np.empty(4 * int(np.prod(shape)) + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + 4 * int(np.prod(shape))].view(np.float32).reshape(shape)


class Native(Engine):
    """Our C++ kernel, which packs the float input, convolves it and scales the sums to a float output, NHWC."""

    def __init__(self, kernel: str) -> None:
        self.native_kernel = kernel
        self.name = f"bnnedge {kernel}"

    def unavailable(self) -> str | None:
        if not native.available():
            return "the native kernels were not built"
        return None if self.native_kernel in native.kernel_names() else "this CPU lacks the instructions"

    def prepare(self, shape: ConvShape, threads: int) -> Prepared:
        return Prepared(self.bind(shape, threads)[0], 1)

    def bind(self, shape: ConvShape, threads: int) -> tuple[Callable[[], None], NDArray[Any]]:
        """The convolution, and the array that its output is written to."""
        x, w = signs(shape)
        words, filters = pack(x[None]), pack(w)
        pair = (shape.stride, shape.stride), (shape.padding, shape.padding)
        geometry = BConv2dGeometry.check(words, filters, shape.channels, *pair, 0, (1, 1), 1)
        count = shape.out_channels
        transform = native.OutputTransform(
            kind="float", multiplier=np.ones(count, np.float32), bias=np.zeros(count, np.float32)
        )
        conv = native.Conv(native.to_params(geometry), filters, transform, kernel=self.native_kernel, threads=threads)
        values, out = aligned((1, *x.shape)), aligned(conv.output_shape)
        values[:] = x
        return conv.bind(values, out), out

    def check(self, shape: ConvShape) -> None:
        """Raise ``BenchmarkError`` unless the result equals that of PyTorch: sums of +-1 are exact in float32."""
        import torch
        from torch.nn import functional as F

        run, out = self.bind(shape, 1)
        run()
        x, w = signs(shape)
        inputs = torch.from_numpy(np.where(x < 0, -1, 1).astype(np.float32)).permute(2, 0, 1)[None]
        weights = torch.from_numpy(w.astype(np.float32)).permute(0, 3, 1, 2)
        expected = F.conv2d(inputs, weights, None, shape.stride, shape.padding)[0].permute(1, 2, 0).numpy()
        if not np.array_equal(out[0], expected):
            raise BenchmarkError(f"{self.name} is wrong on {shape.name}: no time is taken of wrong results")


class Torch(Engine):
    """PyTorch, float32, channels-last."""

    name = "torch fp32"
    package = "torch"

    def prepare(self, shape: ConvShape, threads: int) -> Prepared:
        import torch
        from torch.nn import functional as F

        torch.set_num_threads(threads)
        x, w = signs(shape)
        value = torch.from_numpy(x).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
        weight = torch.from_numpy(w.astype(np.float32)).permute(0, 3, 1, 2)
        weight = (weight / shape.channels).contiguous(memory_format=torch.channels_last)
        bias = torch.zeros(shape.out_channels)
        calls = CHAIN if shape.chains else 1

        def run() -> None:
            with torch.inference_mode():
                y = value
                for _ in range(calls):
                    y = F.conv2d(y, weight, bias, shape.stride, shape.padding)

        return Prepared(run, calls)


def all_engines() -> list[Engine]:
    """Ours first, then the others, those included that are not available here."""
    ours: list[Engine] = [Native(name) for name in native.kernel_names() if name not in ("portable", "reference")]
    kernels: tuple[Kernel, ...] = ("indirect", "default")
    return [
        *ours,
        *(LceEngine(kernel) for kernel in kernels),
        OnnxRuntime(True),
        LiteRt(True),
        OnnxRuntime(False),
        LiteRt(False),
        Torch(),
    ]
