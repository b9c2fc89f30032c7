"""Operators that move values: reshapes, slices, padding, concatenation."""

from __future__ import annotations

from typing import Any

from torch import fx

from bnnedge.export import graph as g
from bnnedge.export.trace.tracer import Tracer, handles


@handles("aten.flatten.using_ints", "aten.view.default", "aten.reshape.default", "aten.squeeze.dims",
          "aten.squeeze.dim", "aten.unsqueeze.default")  # fmt: skip
def _reshape(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    x = args[0]
    shape = tuple(int(d) for d in node.meta["val"].shape)
    if not shape or shape[0] != t.shape(x)[0]:
        raise t.fail(node, f"a reshape must keep the batch dimension, found {t.shape(x)} to {shape}")
    if shape == t.shape(x):
        t.alias(node, x)
    else:
        t.emit(node, g.Reshape, [x], shape=shape[1:])


@handles("aten.dropout.default", "aten.dropout_.default", "aten.feature_dropout.default", "aten.contiguous.default",
          "aten.clone.default", "aten.detach.default", "aten.to.dtype", "aten.alias.default")  # fmt: skip
def _identity(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    t.alias(node, args[0])


@handles("aten.cat.default")
def _cat(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    tensors, dim = args
    if dim % len(t.shape(tensors[0])) != 1 or not all(isinstance(x, str) for x in tensors):
        raise t.fail(node, f"only activations can be concatenated, along the channels; found axis {dim}")
    t.emit(node, g.Concat, list(tensors))


@handles("aten.slice.Tensor")
def _slice(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    x, dim, start, end, step = args
    size = t.shape(x)[dim]
    if (start or 0) != 0 or (end is not None and end < size) or (step != 1 and dim not in (2, 3)):
        raise t.fail(node, f"only x[:, :, ::a, ::b] is supported, found start {start}, end {end} of axis {dim}")
    if step == 1:
        t.alias(node, x)
        return
    steps = (step, 1) if dim == 2 else (1, step)
    before = t.nodes[-1] if t.nodes else None
    if isinstance(before, g.Subsample) and before.output == x and len(node.all_input_nodes[0].users) == 1:
        before.step = (before.step[0] * steps[0], before.step[1] * steps[1])
        t.bind(node, x, "float32")
    else:
        t.emit(node, g.Subsample, [x], step=steps)


@handles("aten.pad.default", "aten.constant_pad_nd.default")
def _pad(t: Tracer, node: fx.Node, args: list[Any]) -> None:
    x, pads = args[0], list(args[1])
    value = args[-1] or 0
    pads += [0] * (2 * len(t.shape(x)) - len(pads))
    before, after = pads[-4], pads[-3]
    if (
        any(pads[:-4])
        or any(pads[-2:])
        or value
        or (len(args) == 4 and args[2] != "constant")
        or min(before, after) < 0
    ):
        raise t.fail(node, f"only zero channels can be padded, found pads {pads} with value {value}")
    t.emit(node, g.PadChannels, [x], before=before, after=after)
