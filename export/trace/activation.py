"""Signs and activation functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import fx

from bnnedge.export import graph as g
from bnnedge.export.trace.tracer import Tracer, array, handles


@handles("bnnedge.sign.default")
def _sign(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    t.emit(node, g.Binarize, [args[0]])


@handles("aten.hardtanh.default", "aten.hardtanh_.default", "aten.clamp.default")
def _clip(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    x, low, high = args
    t.emit(
        node, g.Clip, [x], low=-math.inf if low is None else float(low), high=math.inf if high is None else float(high)
    )


@handles("aten.relu.default", "aten.relu_.default")
def _relu(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    t.emit(node, g.Clip, [args[0]], low=0.0, high=math.inf)


@handles("aten.relu6.default", "aten.relu6_.default")
def _relu6(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    t.emit(node, g.Clip, [args[0]], low=0.0, high=6.0)


@handles("aten.prelu.default")
def _prelu(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    x, slope = args
    t.emit(node, g.PRelu, [x], slope=np.broadcast_to(array(slope), t.shape(x)[1]).copy())


@handles("aten.leaky_relu.default", "aten.leaky_relu_.default")
def _leaky_relu(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    x, slope = args
    t.emit(node, g.PRelu, [x], slope=np.full(t.shape(x)[1], float(slope)))


@handles("aten.sigmoid.default", "aten.tanh.default")
def _elementwise(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    t.emit(node, g.Activation, [args[0]], kind=str(node.target).split(".")[1])


@handles("aten.softmax.int")
def _softmax(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    x, dim, _ = args
    if len(t.shape(x)) != 2 or dim % 2 != 1:
        raise t.fail(node, f"softmax is over the last axis of [N, C], found axis {dim} of {t.shape(x)}")
    t.emit(node, g.Activation, [x], kind="softmax")
