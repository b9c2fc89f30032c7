"""Convolutions and dense layers, float and binary."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from bnnedge.errors import ConfigError
from bnnedge.export import graph as g
from bnnedge.export.trace.tracer import Tracer, array, handles, pair
from bnnedge.layers.binary_layers import zero_padding

W1A32 = "float activations (W1A32)"
"""The reason of a layer that has binary weights and reads floats: it is written as a float layer of weights +-1."""


@handles("aten.conv2d.default")
def _conv2d(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    x, weight, bias, stride, padding, dilation, groups = args
    t.emit(
        node,
        g.Conv2d,
        [x],
        is_layer=True,
        weight=array(weight),
        bias=np.zeros(len(weight)) if bias is None else array(bias),
        stride=pair(stride),
        padding=pair(padding),
        dilation=pair(dilation),
        groups=groups,
    )


@handles("aten.conv2d.padding")
def _conv2d_with_named_padding(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    x, weight, bias, stride, padding, dilation, groups = args
    try:
        pixels = zero_padding(padding, weight.shape[2:], pair(dilation))
    except ConfigError as error:
        raise t.fail(node, str(error)) from error
    _conv2d(t, node, [x, weight, bias, stride, pixels, dilation, groups])


@handles("bnnedge.binary_conv2d.default")
def _binary_conv2d(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    x, weight, stride, padding, dilation, groups = args
    fields = {
        "is_layer": True,
        "bias": np.zeros(len(weight)),
        "stride": pair(stride),
        "padding": pair(padding),
        "dilation": pair(dilation),
        "groups": groups,
    }
    if t.tensors[x].dtype == "bits":
        signs = weight.numpy().astype(np.int8)
        t.emit(node, g.BinaryConv2d, [x], weight=signs, multiplier=np.ones(len(weight)), **fields)
    else:
        t.emit(node, g.Conv2d, [x], weight=array(weight), reason=W1A32, **fields)
    t.calls.append(t.nodes[-1].name)


def _check_dense_input(t: Tracer, node: fx.Node, x: str) -> None:
    if len(t.shape(x)) != 2:
        raise t.fail(node, f"a dense layer reads [N, C], found shape {t.shape(x)}; flatten first")


@handles("bnnedge.binary_linear.default")
def _binary_linear(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    """A binary dense layer is a 1x1 binary convolution of a 1x1 image."""
    x, weight = args
    _check_dense_input(t, node, x)
    if t.tensors[x].dtype != "bits":
        bias = np.zeros(len(weight))
        t.emit(node, g.Linear, [x], is_layer=True, weight=array(weight), bias=bias, reason=W1A32)
        t.calls.append(t.nodes[-1].name)
        return
    outputs, inputs = weight.shape
    batch, name = t.shape(x)[0], t.path(node)
    image = t.insert(g.Reshape, f"{name}/image", x, g.TensorSpec((batch, inputs, 1, 1), "bits"), shape=(inputs, 1, 1))
    y = t.insert(
        g.BinaryConv2d,
        name or "binary_linear",
        image,
        g.TensorSpec((batch, outputs, 1, 1)),
        weight=weight.numpy().astype(np.int8)[:, :, None, None],
        multiplier=np.ones(outputs),
        bias=np.zeros(outputs),
    )
    t.calls.append(t.nodes[-1].name)
    t.emit(node, g.Reshape, [y], shape=(outputs,))


@handles("aten.linear.default")
def _linear(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    x, weight, bias = args
    _check_dense_input(t, node, x)
    bias = np.zeros(len(weight)) if bias is None else array(bias)
    t.emit(node, g.Linear, [x], is_layer=True, weight=array(weight), bias=bias)
