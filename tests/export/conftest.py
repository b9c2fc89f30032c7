"""The slow, obvious meaning of the export graph: every node in float64 by torch, straight from its docstring."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bnnedge.export import graph as g

Evaluate = Callable[[g.Graph, NDArray[np.float32]], dict[str, NDArray[np.float64]]]


def _channels(values: NDArray[np.float64] | NDArray[np.int32], x: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float64)).view(1, -1, *[1] * (x.dim() - 2))


def _conv(node: g.Conv2d | g.BinaryConv2d, x: Tensor) -> Tensor:
    weight = torch.from_numpy(node.weight.astype(np.float64))
    return F.conv2d(x, weight, None, node.stride, node.padding, node.dilation, node.groups)


def _evaluate_node(node: g.Node, inputs: list[Tensor]) -> Tensor:
    x = inputs[0]
    match node:
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
            values[node.output] = _evaluate_node(node, [values[name] for name in node.inputs])
        return {name: value.numpy() for name, value in values.items()}

    return run
