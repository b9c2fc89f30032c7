"""Does the file's int8 stem compute what its definition says, and what does the checkpoint compute behind it?

Codes are compared with exact arithmetic, step by step, each step taking the file's own result of the one before:

1. An input's code is the one nearest to ``x / scale + zero_point``.
2. An output's code is the one nearest to ``a multiplier + zero_point``; a is an integer, exact in float64.

Near a tie between two codes a runtime's arithmetic may take either. Float32 needs up to four roundings of numbers of at
most 2^9 (division, scales, product), so ``FLOAT_TIE = 4 * 2^9 * 2^-24`` bounds the distance of such a tie. TFLite's
fixed point first rounds ``a m 2^-31``, m in [2^30, 2^31), to a whole number and then shifts it right by n places, where
``multiplier = m 2^-31 2^-n``: half a unit before the shift is another 2^-(n+1) behind it. n may be 0: then codes can
differ by one.

The checkpoint's own stem is never replaced by ours blindly: in float64 it must compute, somewhere, exactly the tensor
that the int8 stem stands for. From there on the checkpoint goes on with the file's values (``StemReplay``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bnnedge.errors import VerificationError
from bnnedge.export.graph import (
    HIGHEST_CODE,
    LOWEST_CODE,
    FloatArray,
    Graph,
    MaxPool2d,
    Quantization,
    Quantize,
    QuantizedConv2d,
    SpaceToDepth,
)
from bnnedge.export.passes.quantize_stem import float_stem

FLOAT_TIE = 4 * 2.0**9 * 2.0**-24
Codes = NDArray[np.int8]


@dataclass(frozen=True)
class QuantizedStem:
    """The int8 nodes of a graph."""

    conv: QuantizedConv2d
    pool: MaxPool2d | None
    folded: bool
    source: Quantization
    target: Quantization
    tensors: tuple[str, str]
    """Names of the tensors of codes that enter and that leave the stem."""

    @classmethod
    def of(cls, graph: Graph) -> QuantizedStem | None:
        """The int8 stem of ``graph``; None if its stem is float."""
        conv = next((n for n in graph.nodes if isinstance(n, QuantizedConv2d)), None)
        if conv is None:
            return None
        reader = graph.only_consumer(conv.output)
        pool = reader if isinstance(reader, MaxPool2d) else None
        codes = pool.output if pool else conv.output
        entry = next(n for n in graph.nodes if isinstance(n, Quantize))
        source, target = graph.tensors[entry.output].quantization, graph.tensors[codes].quantization
        assert source is not None and target is not None
        return cls(
            conv=conv,
            pool=pool,
            folded=isinstance(graph.producer(entry.inputs[0]), SpaceToDepth),
            source=source,
            target=target,
            tensors=(entry.output, codes),
        )

    def check(self, images: NDArray[np.float32], entered: Codes, left: Codes) -> None:
        """Raise ``VerificationError`` unless ``entered`` and ``left`` are codes of ``images`` [N, C, H, W]."""
        x = torch.from_numpy(images).double()
        if self.folded:
            x = torch.cat([x[:, :, r::2, s::2] for r in (0, 1) for s in (0, 1)], 1)
        low, high = _candidates(x / self.source.scale + self.source.zero_point, FLOAT_TIE)
        _compare(f"{self.conv.name}: codes of the input", entered, low, high)
        multiplier = self.source.scale * self.conv.weight_scale / self.target.scale
        scaled = self._accumulators(entered) * _channels(multiplier)
        tie = FLOAT_TIE + _channels(_fixed_point_tie(multiplier))
        low, high = _candidates(scaled + self.target.zero_point, tie)
        if self.pool is not None:
            low, high = (F.max_pool2d(t, self.pool.kernel, self.pool.stride, self.pool.padding) for t in (low, high))
        _compare(f"{self.conv.name}: codes of the output", left, low, high)

    def values(self, left: Codes) -> Tensor:
        """Output codes [N, O, H, W] as float64 values."""
        codes = torch.from_numpy(left).double()
        return (codes - self.target.zero_point) * self.target.scale + self.conv.lowest

    def float_values(self, images: NDArray[np.float32]) -> Tensor:
        """What the float stem gives, in float64."""
        y = torch.from_numpy(float_stem(*self.conv.stands_for, images))
        return F.max_pool2d(y, self.pool.kernel, self.pool.stride, self.pool.padding) if self.pool else y

    def _accumulators(self, entered: Codes) -> Tensor:
        top_bottom, left_right = self.conv.edges
        q = F.pad(torch.from_numpy(entered).double() - self.source.zero_point, (*left_right, *top_bottom))
        weight, bias = (torch.from_numpy(a.astype(np.float64)) for a in (self.conv.weight, self.conv.bias))
        return F.conv2d(q, weight, bias, self.conv.stride)


class StemReplay(TorchFunctionMode):
    """Runs a checkpoint in float64 with the values of an int8 stem in place of its own.

    The first tensor equal to ``expected`` [N, C, H, W], what the checkpoint's stem computes, is replaced by ``values``.
    Raises ``VerificationError`` on leaving if there was none.
    """

    TOLERANCE = 1e-9
    """Largest difference of two float64 results that sum in another order and fold batch norms or not, relative to the
    largest value."""

    def __init__(self, values: Tensor, expected: Tensor) -> None:
        super().__init__()
        self._values, self._expected = values, expected
        self._calls = 0
        self._replaced = 0
        """The number of the PyTorch call whose result was replaced, counted from 1; 0 if none was yet."""

    def again(self) -> TorchFunctionMode:
        """A mode for a second run in another precision, which replaces the result of the same call."""
        return _ReplaceCall(self._replaced, self._values)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._calls += 1
        if self._replaced or not isinstance(result, Tensor):
            return result
        if (result.dtype, result.shape) != (self._expected.dtype, self._expected.shape):
            return result
        limit = self.TOLERANCE * float(self._expected.abs().max())
        if not float((result - self._expected).abs().max()) <= limit:
            return result
        self._replaced = self._calls
        return self._values

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        if not self._replaced and isinstance(error, VerificationError | None):
            raise VerificationError(
                "the checkpoint computes nothing equal to the float stem that was quantized"
            ) from error


class _ReplaceCall(TorchFunctionMode):
    """Replaces the result of one call, counted from 1."""

    def __init__(self, call: int, values: Tensor) -> None:
        super().__init__()
        self._call, self._values = call, values
        self._calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._calls += 1
        return self._values.to(result.dtype) if self._calls == self._call else result


def _channels(values: FloatArray) -> Tensor:
    return torch.from_numpy(values).view(-1, 1, 1)


def _fixed_point_tie(multiplier: FloatArray) -> FloatArray:
    """2^-(n+1), where TFLite's fixed point shifts the product right by n places; it never shifts left."""
    _, exponent = np.frexp(multiplier)
    distance: FloatArray = np.exp2(np.minimum(exponent, 0) - 1.0)
    return distance


def _candidates(value: Tensor, tie: float | Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest code that is the nearest one to a number within ``tie`` of ``value``."""
    ends = (torch.round(value - tie), torch.round(value + tie))
    return ends[0].clamp(LOWEST_CODE, HIGHEST_CODE), ends[1].clamp(LOWEST_CODE, HIGHEST_CODE)


def _compare(what: str, found: Codes, low: Tensor, high: Tensor) -> None:
    if found.shape != tuple(low.shape):
        raise VerificationError(f"{what}: the file has shape {found.shape}, expected {tuple(low.shape)}")
    codes = torch.from_numpy(found).double()
    wrong = int(((codes < low) | (codes > high)).sum())
    if wrong:
        raise VerificationError(f"{what}: {wrong} of {found.size} in the file are not the nearest")
