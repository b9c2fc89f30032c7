"""The slow, obvious meaning of the export graph: every node in float64 by torch, straight from its docstring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bnnedge.export import graph as g

Build = Callable[..., g.Graph]
Evaluate = Callable[[g.Graph, NDArray[np.float32]], dict[str, NDArray[np.float64]]]


def _channels(values: NDArray[np.float64] | NDArray[np.int32], x: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float64)).view(1, -1, *[1] * (x.dim() - 2))


def _conv(node: g.Conv2d | g.BinaryConv2d, x: Tensor) -> Tensor:
    weight = torch.from_numpy(node.weight.astype(np.float64))
    return F.conv2d(x, weight, None, node.stride, node.padding, node.dilation, node.groups)


def _quantization(graph: g.Graph, tensor: str) -> g.Quantization:
    quantization = graph.tensors[tensor].quantization
    assert quantization is not None
    return quantization


def _codes(values: Tensor) -> Tensor:
    return values.round().clamp(-128, 127)


def _evaluate_node(node: g.Node, inputs: list[Tensor], graph: g.Graph) -> Tensor:
    x = inputs[0]
    match node:
        case g.SpaceToDepth():
            return torch.cat([x[:, :, r::2, s::2] for r in (0, 1) for s in (0, 1)], 1)
        case g.Quantize():
            target = _quantization(graph, node.output)
            return _codes(x / target.scale + target.zero_point)
        case g.QuantizedConv2d():
            source, target = (_quantization(graph, name) for name in (node.inputs[0], node.output))
            (top, bottom), (left, right) = node.edges
            weight, bias = (torch.from_numpy(a.astype(np.float64)) for a in (node.weight, node.bias))
            padded = F.pad(x - source.zero_point, (left, right, top, bottom))
            sums = F.conv2d(padded, weight, bias, node.stride)
            return _codes(sums * _channels(source.scale * node.weight_scale / target.scale, sums) + target.zero_point)
        case g.Dequantize():
            source = _quantization(graph, node.inputs[0])
            return (x - source.zero_point) * source.scale
        case g.BinaryConv2d():
            sums = _conv(node, x)
            if node.threshold is None:
                return sums * _channels(node.multiplier, sums) + _channels(node.bias, sums)
            return torch.where(sums < _channels(node.threshold, sums), -1.0, 1.0).double()
        case g.Conv2d():
            y = _conv(node, x)
            return y + _channels(node.bias, y)
        case g.Linear():
            return x @ torch.from_numpy(node.weight).double().T + torch.from_numpy(node.bias).double()
        case g.Binarize():
            return torch.where(x < 0, -1.0, 1.0).double()
        case g.Affine():
            return x * _channels(node.multiplier, x) + _channels(node.bias, x)
        case g.Clip():
            return x.clamp(node.low, node.high)
        case g.PRelu():
            return torch.where(x >= 0, x, x * _channels(node.slope, x))
        case g.Activation():
            return x.softmax(-1) if node.kind == "softmax" else {"sigmoid": x.sigmoid, "tanh": x.tanh}[node.kind]()
        case g.Add():
            return x + inputs[1]
        case g.Sub():
            return x - inputs[1]
        case g.Mul():
            return x * inputs[1]
        case g.Div():
            return x / inputs[1]
        case g.Sqrt():
            return x.sqrt()
        case g.Mean():
            return x.mean(node.axes, node.keepdims)
        case g.MaxPool2d():
            return F.max_pool2d(x, node.kernel, node.stride, node.padding)
        case g.AvgPool2d():
            return F.avg_pool2d(x, node.kernel, node.stride)
        case g.Reshape():
            return x.reshape(len(x), *node.shape)
        case g.Subsample():
            return x[:, :, :: node.step[0], :: node.step[1]]
        case g.PadChannels():
            return F.pad(x, (0, 0) * (x.dim() - 2) + (node.before, node.after))
        case g.Concat():
            return torch.cat(inputs, 1)
    raise TypeError(type(node))


@pytest.fixture(scope="session")
def evaluate() -> Evaluate:
    """``evaluate(graph, images)``: every tensor of the graph by name, in float64."""

    def run(graph: g.Graph, images: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        values = {graph.input: torch.from_numpy(images).double()}
        for node in graph.nodes:
            values[node.output] = _evaluate_node(node, [values[name] for name in node.inputs], graph)
        return {name: value.numpy() for name, value in values.items()}

    return run


@pytest.fixture
def build(evaluate: Evaluate) -> Build:
    """A chain of nodes n0, n1, ... that write t0, t1, ...; fields of a spec override that. Parameters are float32."""

    def make(shape: tuple[int, ...], *specs: tuple[type[g.Node], dict[str, Any]], **metadata: Any) -> g.Graph:
        graph = g.Graph(("image",), ("image",), [], {"image": g.TensorSpec(shape)}, metadata)
        for index, (kind, fields) in enumerate(specs):
            rounded = {k: _as_float32(v) for k, v in fields.items()}
            node = kind(**{"name": f"n{index}", "inputs": (graph.output,), "output": f"t{index}", **rounded})
            graph.nodes.append(node)
            graph.outputs = (node.output,)
        for tensor, value in evaluate(graph, np.zeros(shape, np.float32)).items():
            graph.tensors[tensor] = g.TensorSpec(value.shape, "bits" if _is_bits(graph, tensor) else "float32")
        return graph

    return make


def _as_float32(value: Any) -> Any:
    is_float = isinstance(value, np.ndarray) and value.dtype == np.float64
    return value.astype(np.float32).astype(np.float64) if is_float else value


def _is_bits(graph: g.Graph, tensor: str) -> bool:
    node = graph.producer(tensor)
    if isinstance(node, g.MaxPool2d | g.Reshape):
        return _is_bits(graph, node.inputs[0])
    return isinstance(node, g.Binarize) or (isinstance(node, g.BinaryConv2d) and node.threshold is not None)
