"""Pooling over the pixels of an image."""

from __future__ import annotations

from typing import Any

from torch import fx

from bnnedge.export import graph as g
from bnnedge.export.trace.tracer import Tracer, handles, pair


@handles("aten.adaptive_avg_pool2d.default")
def _adaptive_avg_pool2d(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    x, size = args
    (height, width), (rows, columns) = t.shape(x)[2:], pair(size)
    if (rows, columns) == (1, 1):
        t.emit(node, g.Mean, [x], axes=(2, 3), keepdims=True)
    elif height % rows or width % columns:
        raise t.fail(node, f"output size {rows}x{columns} does not divide the map {height}x{width}")
    else:
        kernel = (height // rows, width // columns)
        t.emit(node, g.AvgPool2d, [x], kernel=kernel, stride=kernel)


@handles("aten.avg_pool2d.default")
def _avg_pool2d(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    x, kernel, stride, padding, ceil_mode, _, divisor = args
    if any(pair(padding or 0)) or ceil_mode or divisor is not None:
        raise t.fail(node, "average pooling with padding, ceil_mode or divisor_override")
    t.emit(node, g.AvgPool2d, [x], kernel=pair(kernel), stride=pair(stride or kernel))


@handles("aten.max_pool2d.default")
def _max_pool2d(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    x, kernel, stride, padding, dilation, ceil_mode = args
    if pair(dilation) != (1, 1) or ceil_mode:
        raise t.fail(node, "max pooling with dilation or ceil_mode")
    t.emit(node, g.MaxPool2d, [x], kernel=pair(kernel), stride=pair(stride or kernel), padding=pair(padding))
