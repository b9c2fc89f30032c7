"""Arithmetic of tensors, batch norm and means."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, fx

from bnnedge.export import graph as g
from bnnedge.export.trace.tracer import Tracer, array, handles


@handles("aten.batch_norm.default")
def _batch_norm(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    x, gain, shift, mean, variance, training, _, epsilon, _ = args
    if training or mean is None:
        raise t.fail(node, "batch norm without running statistics depends on the batch")
    multiplier = 1 / np.sqrt(array(variance) + epsilon)
    if gain is not None:
        multiplier = multiplier * array(gain)
    bias = -array(mean) * multiplier
    if shift is not None:
        bias = bias + array(shift)
    t.emit(node, g.Affine, [x], is_layer=True, multiplier=multiplier, bias=bias)


def _channel_constant(t: Tracer, node: fx.Node, x: str, constant: Any) -> g.FloatArray:
    """``constant`` as one value per channel of ``x``."""
    shape = t.shape(x)
    values = np.asarray(constant.double().numpy() if isinstance(constant, Tensor) else constant, np.float64)
    per_channel = (1, shape[1], *[1] * (len(shape) - 2))
    aligned = (1,) * (len(shape) - values.ndim) + values.shape
    if any(a not in (1, p) for a, p in zip(aligned, per_channel, strict=True)):
        raise t.fail(node, f"a constant must be one number or one per channel, found shape {values.shape} for {shape}")
    return np.broadcast_to(values.reshape(aligned), per_channel).reshape(shape[1]).copy()


def _affine(t: Tracer, node: fx.Node, x: str, multiplier: Any, bias: Any) -> None:
    m, b = _channel_constant(t, node, x, multiplier), _channel_constant(t, node, x, bias)
    t.emit(node, g.Affine, [x], multiplier=m, bias=b)


@handles("aten.add.Tensor", "aten.add_.Tensor", "aten.add.Scalar")
def _add(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    a, b, alpha = args
    if alpha != 1:
        raise t.fail(node, f"alpha must be 1, found {alpha}")
    if isinstance(a, str) and isinstance(b, str):
        t.emit(node, g.Add, [a, b])
    else:
        x, constant = (a, b) if isinstance(a, str) else (b, a)
        _affine(t, node, x, 1.0, constant)


@handles("aten.sub.Tensor", "aten.sub.Scalar", "aten.sub_.Tensor")
def _sub(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    a, b, alpha = args
    if alpha != 1:
        raise t.fail(node, f"alpha must be 1, found {alpha}")
    if isinstance(a, str) and isinstance(b, str):
        t.emit(node, g.Sub, [a, b])
    elif isinstance(a, str):
        _affine(t, node, a, 1.0, -b)
    else:
        _affine(t, node, b, -1.0, a)


@handles("aten.rsub.Scalar", "aten.rsub.Tensor")
def _rsub(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    x, other, alpha = args
    _sub(t, node, [other, x, alpha])


@handles("aten.neg.default")
def _neg(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    _affine(t, node, args[0], -1.0, 0.0)


@handles("aten.mul.Tensor", "aten.mul.Scalar", "aten.mul_.Tensor")
def _mul(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    a, b = args
    if isinstance(a, str) and isinstance(b, str):
        t.emit(node, g.Mul, [a, b])
    else:
        x, constant = (a, b) if isinstance(a, str) else (b, a)
        _affine(t, node, x, constant, 0.0)


@handles("aten.div.Tensor", "aten.div.Scalar", "aten.div_.Tensor")
def _div(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    a, b = args
    if not isinstance(a, str):
        raise t.fail(node, "the numerator must depend on the input")
    if isinstance(b, int | float) and b == 0:
        raise t.fail(node, "division by zero")
    if isinstance(b, str):
        t.emit(node, g.Div, [a, b])
    else:
        _affine(t, node, a, 1.0 / b, 0.0)


@handles("aten.sqrt.default")
def _sqrt(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    t.emit(node, g.Sqrt, [args[0]])


@handles("aten.mean.dim")
def _mean(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    x, dims, keepdims, _ = args
    rank = len(t.shape(x))
    axes = tuple(sorted(d % rank for d in (dims or range(rank))))
    if 0 in axes:
        raise t.fail(node, "a mean over the batch depends on the batch")
    t.emit(node, g.Mean, [x], axes=axes, keepdims=bool(keepdims))
