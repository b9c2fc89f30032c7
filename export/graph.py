"""The export graph: what every pass rewrites and every target writes. NumPy and dataclasses only, no torch objects.

Semantics are PyTorch's: tensors are [N, C, H, W] or [N, C], weights OIHW, padding symmetric and zero. Shapes carry the
batch size of the example input in dimension 0; targets make that dimension dynamic where they can.

A tensor is ``float32``, ``bits`` or ``int8``. A ``bits`` tensor holds values in {-1, +1} only; how it is stored is the
target's business (``kernels/layout.py`` is the packed form). An ``int8`` tensor holds codes, see ``Quantization``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ExportError

Dtype = Literal["float32", "bits", "int8"]
Pair = tuple[int, int]
FloatArray = NDArray[np.float64]
LOWEST_CODE, HIGHEST_CODE = -128, 127


@dataclass(frozen=True)
class Quantization:
    """Code q in [-128, 127] means ``(q - zero_point) * scale``; ``scale`` is a float32 number."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class TensorSpec:
    """Shape and element kind of one tensor."""

    shape: tuple[int, ...]
    dtype: Dtype = "float32"
    quantization: Quantization | None = None
    """Of an ``int8`` tensor."""


@dataclass(kw_only=True)
class Node:
    """One operation: ``inputs`` and ``output`` are tensor names; ``name`` is the module path it came from."""

    name: str
    inputs: tuple[str, ...]
    output: str


@dataclass(kw_only=True)
class Conv2d(Node):
    """Float convolution. weight [O, I/groups, kh, kw], bias [O]."""

    weight: FloatArray
    bias: FloatArray
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    reason: str = "float in the model"
    """Why this layer is not binary; shown in the export table."""


@dataclass(kw_only=True)
class BinaryConv2d(Node):
    """Binary convolution of a ``bits`` tensor: ``s = conv(x, weight)`` is an integer, zero padding adds 0.

    Without ``threshold`` the output is float32, ``s * multiplier + bias``. With it the output is ``bits``:
    -1 where ``s < threshold``, else +1; multiplier and bias are then no longer used.
    """

    weight: NDArray[np.int8]
    """{-1, +1}, shape [O, I/groups, kh, kw]."""
    multiplier: FloatArray
    bias: FloatArray
    threshold: NDArray[np.int32] | None = None
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def fan_in(self) -> int:
        """K, the number of products in one output."""
        return int(np.prod(self.weight.shape[1:]))


@dataclass(kw_only=True)
class Quantize(Node):
    """float32 to int8: the code nearest to ``x / scale + zero_point`` of the output's quantization, saturated."""


@dataclass(kw_only=True)
class QuantizedConv2d(Node):
    """int8 convolution: the code nearest to ``a * multiplier + zero_point``, saturated, where

    ``a = conv(q - zero_point of the input, weight) + bias`` is an integer and ``multiplier = scale of the input *
    weight_scale / scale of the output``, per channel. Padding adds 0 to a, that is, the input's zero point.
    """

    weight: NDArray[np.int8]
    """[-127, 127], shape [O, I, kh, kw]."""
    weight_scale: FloatArray
    """[O], float32 numbers."""
    bias: NDArray[np.int32]
    """[O], in steps of input scale times weight scale."""
    stride: Pair
    edges: tuple[Pair, Pair]
    """Pixels added before and after, of the rows and of the columns."""
    stands_for: tuple[Conv2d, Clip | None]
    """The float nodes that it takes the place of."""
    lowest: float
    """What they give where the output's code is the lowest; an ``Affine`` behind ``Dequantize`` adds it."""
    reason: str = "int8 stem"


@dataclass(kw_only=True)
class Dequantize(Node):
    """int8 to float32."""


@dataclass(kw_only=True)
class SpaceToDepth(Node):
    """[N, C, H, W] to [N, 4 C, H/2, W/2]: channel (2 r + s) C + c is ``x[:, c, r::2, s::2]``."""


@dataclass(kw_only=True)
class Linear(Node):
    """``x @ weight.T + bias`` for x [N, I]; weight [O, I], bias [O]."""

    weight: FloatArray
    bias: FloatArray
    reason: str = "float in the model"


@dataclass(kw_only=True)
class Binarize(Node):
    """float32 to bits: -1 where ``x < 0``, else +1."""


@dataclass(kw_only=True)
class Affine(Node):
    """``x * multiplier + bias`` per channel (axis 1), both [C]."""

    multiplier: FloatArray
    bias: FloatArray


@dataclass(kw_only=True)
class Clip(Node):
    """``min(max(x, low), high)``; relu is (0, inf), hard-tanh (-1, 1)."""

    low: float
    high: float


@dataclass(kw_only=True)
class PRelu(Node):
    """``x if x >= 0 else slope * x`` per channel (axis 1), slope [C]."""

    slope: FloatArray


@dataclass(kw_only=True)
class Activation(Node):
    """An element-wise or row-wise standard function: ``sigmoid``, ``tanh`` or ``softmax`` (last axis)."""

    kind: Literal["sigmoid", "tanh", "softmax"]


@dataclass(kw_only=True)
class Add(Node):
    """Sum of two tensors with NumPy broadcasting."""


@dataclass(kw_only=True)
class Sub(Node):
    """First tensor minus second, with NumPy broadcasting."""


@dataclass(kw_only=True)
class Mul(Node):
    """Product of two tensors with NumPy broadcasting."""


@dataclass(kw_only=True)
class Div(Node):
    """First tensor divided by second, with NumPy broadcasting."""


@dataclass(kw_only=True)
class Sqrt(Node):
    """Element-wise square root."""


@dataclass(kw_only=True)
class Mean(Node):
    """Mean over ``axes`` (never the batch axis)."""

    axes: tuple[int, ...]
    keepdims: bool


@dataclass(kw_only=True)
class MaxPool2d(Node):
    """Maximum over windows; outside pixels never win. On ``bits`` tensors it is the AND of the packed words."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)


@dataclass(kw_only=True)
class AvgPool2d(Node):
    """Mean over windows, no padding."""

    kernel: Pair
    stride: Pair


@dataclass(kw_only=True)
class Reshape(Node):
    """Row-major reshape of each sample to ``shape`` (without the batch dimension)."""

    shape: tuple[int, ...]


@dataclass(kw_only=True)
class Subsample(Node):
    """``x[:, :, ::step[0], ::step[1]]``."""

    step: Pair


@dataclass(kw_only=True)
class PadChannels(Node):
    """Zero channels before and after (axis 1)."""

    before: int
    after: int


@dataclass(kw_only=True)
class Concat(Node):
    """Concatenation along the channel axis (axis 1)."""


@dataclass
class Graph:
    """Nodes in execution order, the spec of every tensor, and what the file should say of itself."""

    input: str
    output: str
    nodes: list[Node]
    tensors: dict[str, TensorSpec]
    metadata: dict[str, Any] = field(default_factory=dict)

    def producer(self, tensor: str) -> Node | None:
        """The node that writes ``tensor``; None for the graph input."""
        return next((n for n in self.nodes if n.output == tensor), None)

    def consumers(self, tensor: str) -> list[Node]:
        """The nodes that read ``tensor``, in execution order."""
        return [n for n in self.nodes if tensor in n.inputs]

    def only_consumer(self, tensor: str) -> Node | None:
        """The one reader of ``tensor``, or None if there are several, none, or it is the graph output."""
        readers = self.consumers(tensor)
        return readers[0] if len(readers) == 1 and tensor != self.output else None

    def binary_nodes(self) -> Iterator[BinaryConv2d]:
        """The binary convolutions in execution order."""
        return (n for n in self.nodes if isinstance(n, BinaryConv2d))

    def validate(self) -> Graph:
        """Return self, or raise ``ExportError`` naming the node that breaks an invariant."""
        known = {self.input}
        names: set[str] = set()
        for node in self.nodes:
            for tensor in node.inputs:
                if tensor not in known:
                    raise ExportError(f"{node.name}: reads {tensor!r} before it is written")
            if node.output in known:
                raise ExportError(f"{node.name}: writes {node.output!r}, which is written already")
            if node.output not in self.tensors:
                raise ExportError(f"{node.name}: no shape is known for its output {node.output!r}")
            if node.name in names:
                raise ExportError(f"two nodes are called {node.name!r}")
            self._check_dtypes(node)
            known.add(node.output)
            names.add(node.name)
        if self.output not in known:
            raise ExportError(f"the graph output {self.output!r} is never written")
        return self

    def _check_dtypes(self, node: Node) -> None:
        reads, writes = _dtypes(node, self.tensors[node.inputs[0]].dtype)
        for verb, tensor, expected in (("read", node.inputs[0], reads), ("write", node.output, writes)):
            spec = self.tensors[tensor]
            if spec.dtype != expected:
                raise ExportError(f"{node.name}: {type(node).__name__} cannot {verb} a {spec.dtype} tensor")
            if (spec.dtype == "int8") != (spec.quantization is not None):
                raise ExportError(f"{tensor}: int8 tensors, and only they, have a quantization")


def _dtypes(node: Node, source: Dtype) -> tuple[Dtype, Dtype]:
    """What ``node`` must read and write; ``source`` is what its first input is."""
    match node:
        case BinaryConv2d():
            return "bits", "float32" if node.threshold is None else "bits"
        case Binarize():
            return "float32", "bits"
        case Quantize():
            return "float32", "int8"
        case QuantizedConv2d():
            return "int8", "int8"
        case Dequantize():
            return "int8", "float32"
        case MaxPool2d():
            return source, source
        case Reshape() if source == "bits":
            return "bits", "bits"
    return "float32", "float32"
