"""The state of writing a graph to TFLite: which tensor of the file holds which of the graph, and common operators.

Tensors of rank 4 live as NHWC, all others as in the graph. Only PyTorch's row-major reshapes between maps and vectors
care about the difference. Every operator works for any batch size after ``resize_tensor_input``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ExportError
from bnnedge.export import graph as g
from bnnedge.export.targets.tflite.writer import ElementType, TfliteWriter
from bnnedge.export.window import Windows
from bnnedge.kernels.layout import words_for

SAME, VALID = 0, 1
FUSED = {(0.0, math.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
_ACTIVATION_CODES = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
_ELEMENTS: dict[g.Dtype, ElementType] = {"float32": "float32", "bits": "int32", "int8": "int8"}
NHWC_AXIS = (0, 3, 1, 2)
"""Axis i of an NCHW tensor is axis ``NHWC_AXIS[i]`` of the same tensor in NHWC."""
LOWEST = float(np.finfo(np.float32).min)


class Lowering:
    """A graph while its nodes are written to a ``TfliteWriter``."""

    def __init__(self, graph: g.Graph) -> None:
        self.graph = graph
        self.writer = TfliteWriter()
        self.reasons: dict[str, str] = {}
        self.nhwc_columns: dict[str, tuple[int, ...]] = {}
        """Dense layers whose input is a flattened NHWC map: layer name to (C, H, W)."""
        self.tensors: dict[str, int] = {}
        self.fused: set[str] = set()
        """Names of the nodes that are fused into the operator before them."""
        for name in graph.inputs:
            self.tensors[name] = self.writer.tensor(name, self.stored_shape(name))

    def spec(self, tensor: str) -> g.TensorSpec:
        return self.graph.tensors[tensor]

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape in the graph for a batch of one."""
        return (1, *self.spec(tensor).shape[1:])

    def stored_shape(self, tensor: str) -> tuple[int, ...]:
        """Shape in the file for a batch of one."""
        shape = nhwc(self.shape(tensor))
        return (*shape[:-1], words_for(shape[-1])) if self.spec(tensor).dtype == "bits" else shape

    def source(self, node: g.Node, index: int = 0) -> int:
        """The tensor of the file that holds an input of ``node``; a ``bits`` tensor is held as packed words."""
        return self.tensors[node.inputs[index]]

    def numbers(self, node: g.Node, index: int = 0) -> int:
        """The tensor that ``source`` gives; one of ``bits`` is unpacked to the float32 numbers -1 and +1."""
        tensor = node.inputs[index]
        return self.dequantized(node, tensor) if self.spec(tensor).dtype == "bits" else self.tensors[tensor]

    def dequantized(self, node: g.Node, tensor: str) -> int:
        """The ``bits`` tensor as float32 -1 and +1, for ``node``."""
        target = self.writer.tensor(f"{tensor}/{node.name}/signs", nhwc(self.shape(tensor)))
        return self.writer.custom("LceDequantize", [self.tensors[tensor]], target)

    def output(self, tensor: str) -> int:
        """The tensor of the file that holds a graph output; a ``bits`` tensor is unpacked to float32 numbers."""
        producer = self.graph.producer(tensor)
        if self.spec(tensor).dtype != "bits" or producer is None:
            return self.tensors[tensor]
        return self.dequantized(producer, tensor)

    def target(self, node: g.Node) -> int:
        """Declare the tensor that ``node`` writes."""
        spec = self.spec(node.output)
        index = self.writer.tensor(node.output, self.stored_shape(node.output), _ELEMENTS[spec.dtype])
        if spec.quantization is not None:
            self.writer.quantize(index, [spec.quantization.scale], spec.quantization.zero_point)
        self.tensors[node.output] = index
        return index

    def target_with_activation(self, node: g.Node) -> tuple[int, int]:
        """As ``target``, with the code of the activation to fuse: that of the clip which alone reads the output."""
        clip = self.graph.only_consumer(node.output)
        if isinstance(clip, g.Clip) and (clip.low, clip.high) in FUSED:
            self.fused.add(clip.name)
            return self.target(clip), _ACTIVATION_CODES[FUSED[clip.low, clip.high]]
        return self.target(node), 0

    def parameter(self, node: g.Node, role: str, values: NDArray[np.float64]) -> int:
        """A float32 constant called ``<node>/<role>``; ``ExportError`` if float32 cannot hold it."""
        with np.errstate(over="ignore"):
            narrow = np.ascontiguousarray(values, np.float32)
        if not np.isfinite(narrow).all():
            raise ExportError(f"{node.name}: {role} has a value that is not finite in float32; check the checkpoint")
        return self.writer.constant(f"{node.name}/{role}", narrow)

    def temporary(self, node: g.Node, role: str, shape: Sequence[int], element: ElementType = "float32") -> int:
        """A tensor inside the operators of one node."""
        return self.writer.tensor(f"{node.name}/{role}", shape, element)

    def integers(self, values: Any) -> int:
        """An int32 constant."""
        return self.writer.literal(np.ascontiguousarray(values, np.int32))

    def pad(self, node: g.Node, source: int, edges: NDArray[np.int32], value: float | int | None = None) -> int:
        """``source`` with constant ``edges`` [rank, 2] added: zeros, or ``value`` in the tensor's element type."""
        shape = [d + int(e.sum()) for d, e in zip(self.writer.shape(source), edges, strict=True)]
        element = self.writer.element(source)
        target = self.temporary(node, "padded", shape, element)
        self.writer.copy_quantization(source, target)
        if value is None:
            return self.writer.builtin("PAD", [source, self.integers(edges)], target)
        fill = self.writer.literal(np.array([value], element))
        return self.writer.builtin("PADV2", [source, self.integers(edges), fill], target)

    def windowed(
        self, node: g.Node, source: int, windows: Windows, value: float | int | None = None
    ) -> tuple[int, int]:
        """The tensor and the padding code that give PyTorch's windows.

        Outside pixels are 0, or ``value`` where the tensor is padded by an operator of its own.
        """
        if windows.is_padded and windows.is_same:
            return source, SAME
        if windows.is_padded:
            source = self.pad(node, source, windows.edges, value)
        return source, VALID

    def transpose(self, node: g.Node, source: int, axes: Sequence[int], target: int | None = None) -> int:
        """``source`` with axes permuted, into ``target`` or a temporary."""
        shape = [self.writer.shape(source)[a] for a in axes]
        target = self.temporary(node, "transposed", shape) if target is None else target
        return self.writer.builtin("TRANSPOSE", [source, self.integers(axes)], target)

    def reshape(self, source: int, target: int) -> int:
        """``source`` in the stored shape of ``target``, whatever the batch size."""
        shape = [-1, *self.writer.shape(target)[1:]]
        return self.writer.builtin("RESHAPE", [source, self.integers(shape)], target, newShape=shape)


def nhwc(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[N, C, H, W] as [N, H, W, C]; any other rank as it is."""
    return (shape[0], shape[2], shape[3], shape[1]) if len(shape) == 4 else shape


def conv_windows(node: g.Conv2d | g.BinaryConv2d, low: Lowering) -> Windows:
    """The windows of a convolution over its input."""
    height, width = low.shape(node.inputs[0])[2:]
    kernel = (node.weight.shape[2], node.weight.shape[3])
    return Windows.of(node.name, (height, width), kernel, node.stride, node.padding, node.dilation)


def is_order_free(shape: tuple[int, ...]) -> bool:
    """Whether NCHW and NHWC list the elements of a tensor in the same order."""
    return len(shape) != 4 or shape[1] == 1 or shape[2] * shape[3] == 1
