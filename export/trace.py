"""From a model to the export graph: ``torch.export`` of the deploy form, one handler per ATen operator.

Operators on constants alone (weights, buffers) are evaluated while tracing, so the graph holds only what depends on
the input.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from bnnedge.errors import ConfigError, ExportError
from bnnedge.export import graph as g
from bnnedge.layers.binary_layers import zero_padding
from bnnedge.layers.deploy import deploy

Handler = Callable[["_Tracer", fx.Node, list[Any]], None]
_HANDLERS: dict[str, Handler] = {}


def trace(model: nn.Module, example_input: Tensor) -> g.Graph:
    """The export graph of ``model``'s deploy form, for inputs shaped like ``example_input`` [N, C, H, W] or [N, C].

    Raises ``ExportError`` naming the layer and the operator that has no counterpart in the graph, or saying why
    PyTorch itself cannot trace the model.
    """
    deployed = deploy(model)
    enabled = logging.root.manager.disable
    logging.disable()  # torch.export logs and prints pages about what the error below says in a line
    try:
        with redirect_stderr(io.StringIO()):
            program = torch.export.export(deployed, (example_input.cpu().float(),), strict=False)
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        raise ExportError(f"torch.export cannot trace {type(model).__name__}: {reason.splitlines()[0]}") from error
    finally:
        logging.disable(enabled)
    return _Tracer(program).run()


def _handles(*operators: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        for operator in operators:
            _HANDLERS[operator] = handler
        return handler

    return register


class _Tracer:
    """Walks the traced program; ``values`` holds a constant or the name of a graph tensor for every fx node."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.program = program
        self.values: dict[fx.Node, Any] = {}
        self.nodes: list[g.Node] = []
        self.tensors: dict[str, g.TensorSpec] = {}
        self.names: set[str] = set()

    def run(self) -> g.Graph:
        signature = self.program.graph_signature
        constants = {**self.program.state_dict, **self.program.constants}
        held = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        inputs = []
        output = ""
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                if node.name in held:
                    self.values[node] = constants[held[node.name]].detach()
                else:
                    inputs.append(self.bind(node, "input"))
            elif node.op == "call_function":
                self.call(node)
            elif node.op == "output":
                results = node.args[0]
                if len(results) != 1 or not isinstance(self.values.get(results[0]), str):
                    raise ExportError(f"the model should return one tensor that depends on its input, got {results}")
                output = self.values[results[0]]
        if len(inputs) != 1:
            raise ExportError(f"the model should take one input tensor, got {len(inputs)}")
        return g.Graph(inputs[0], output, self.nodes, self.tensors).validate()

    def call(self, node: fx.Node) -> None:
        args = [fx.node.map_arg(a, lambda n: self.values[n]) for a in self._positional(node)]
        sources = [self.values[n] for n in node.all_input_nodes]
        if sources and all(isinstance(s, Tensor) for s in sources):
            self.values[node] = node.target(*args)  # type: ignore[operator]
            return
        handler = _HANDLERS.get(str(node.target))
        if handler is None:
            raise ExportError(
                f"{self.path(node) or 'model'}: operator {node.target} has no counterpart in the export graph"
            )
        handler(self, node, args)

    @staticmethod
    def _positional(node: fx.Node) -> list[Any]:
        """All arguments in schema order, defaults filled in."""
        schema = node.target._schema  # type: ignore[union-attr]
        args = list(node.args)
        for argument in schema.arguments[len(args) :]:
            args.append(node.kwargs.get(argument.name, argument.default_value))
        return args

    @staticmethod
    def path(node: fx.Node) -> str:
        """Path of the module that the operator was called in."""
        stack = node.meta.get("nn_module_stack") or {}
        return list(stack.values())[-1][0] if stack else ""

    def bind(self, node: fx.Node, name: str, dtype: g.Dtype = "float32") -> str:
        """Declare ``name`` as the tensor that ``node`` computes."""
        self.tensors[name] = g.TensorSpec(tuple(int(d) for d in node.meta["val"].shape), dtype)
        self.values[node] = name
        return name

    def unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self.names:
            count += 1
            candidate = f"{name}#{count}"
        self.names.add(candidate)
        return candidate

    def emit(
        self, node: fx.Node, kind: type[g.Node], inputs: list[str], /, *, dtype: g.Dtype = "float32", **fields: Any
    ) -> None:
        """Append a graph node for ``node``. Layers with weights carry their module's path, others path/operator."""
        path = self.path(node)
        layer = kind in (g.Conv2d, g.BinaryConv2d, g.Linear) or "batch_norm" in node.name
        operator = str(node.target).split(".")[1]
        name = self.unique(path if layer and path else f"{path}/{operator}".lstrip("/"))
        self.nodes.append(kind(name=name, inputs=tuple(inputs), output=self.bind(node, name, dtype), **fields))

    def insert(self, kind: type[g.Node], name: str, source: str, spec: g.TensorSpec, **fields: Any) -> str:
        """Append a graph node that has no fx node of its own."""
        name = self.unique(name)
        self.tensors[name] = spec
        self.nodes.append(kind(name=name, inputs=(source,), output=name, **fields))
        return name

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self.tensors[tensor].shape

    def alias(self, node: fx.Node, tensor: str) -> None:
        self.values[node] = tensor

    def fail(self, node: fx.Node, why: str) -> ExportError:
        return ExportError(f"{self.path(node) or 'model'}: {node.target} cannot be exported: {why}")


def _array(t: Tensor) -> g.FloatArray:
    array: g.FloatArray = t.double().numpy()
    return array


def _pair(value: Any) -> g.Pair:
    values = [value] if isinstance(value, int) else list(value)
    return (int(values[0]), int(values[-1]))


@_handles("aten.conv2d.default")
def _conv2d(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    x, weight, bias, stride, padding, dilation, groups = args
    t.emit(
        node,
        g.Conv2d,
        [x],
        weight=_array(weight),
        bias=np.zeros(len(weight)) if bias is None else _array(bias),
        stride=_pair(stride),
        padding=_pair(padding),
        dilation=_pair(dilation),
        groups=groups,
    )


@_handles("aten.conv2d.padding")
def _conv2d_with_named_padding(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    x, weight, bias, stride, padding, dilation, groups = args
    try:
        pixels = zero_padding(padding, weight.shape[2:], _pair(dilation))
    except ConfigError as error:
        raise t.fail(node, str(error)) from error
    _conv2d(t, node, [x, weight, bias, stride, pixels, dilation, groups])


@_handles("bnnedge.binary_conv2d.default")
def _binary_conv2d(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    x, weight, stride, padding, dilation, groups = args
    fields = {
        "bias": np.zeros(len(weight)),
        "stride": _pair(stride),
        "padding": _pair(padding),
        "dilation": _pair(dilation),
        "groups": groups,
    }
    if t.tensors[x].dtype == "bits":
        signs = weight.numpy().astype(np.int8)
        t.emit(node, g.BinaryConv2d, [x], weight=signs, multiplier=np.ones(len(weight)), **fields)
    else:
        t.emit(node, g.Conv2d, [x], weight=_array(weight), reason="float activations (W1A32)", **fields)


def _check_dense_input(t: _Tracer, node: fx.Node, x: str) -> None:
    if len(t.shape(x)) != 2:
        raise t.fail(node, f"a dense layer reads [N, C], found shape {t.shape(x)}; flatten first")


@_handles("bnnedge.binary_linear.default")
def _binary_linear(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    """A binary dense layer is a 1x1 binary convolution of a 1x1 image."""
    x, weight = args
    _check_dense_input(t, node, x)
    if t.tensors[x].dtype != "bits":
        bias = np.zeros(len(weight))
        t.emit(node, g.Linear, [x], weight=_array(weight), bias=bias, reason="float activations (W1A32)")
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
    t.emit(node, g.Reshape, [y], shape=(outputs,))


@_handles("bnnedge.sign.default")
def _sign(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    t.emit(node, g.Binarize, [args[0]], dtype="bits")


@_handles("aten.linear.default")
def _linear(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    x, weight, bias = args
    _check_dense_input(t, node, x)
    t.emit(node, g.Linear, [x], weight=_array(weight), bias=np.zeros(len(weight)) if bias is None else _array(bias))


@_handles("aten.batch_norm.default")
def _batch_norm(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    x, gain, shift, mean, variance, training, _, epsilon, _ = args
    if training or mean is None:
        raise t.fail(node, "batch norm without running statistics depends on the batch")
    multiplier = 1 / np.sqrt(_array(variance) + epsilon)
    if gain is not None:
        multiplier = multiplier * _array(gain)
    bias = -_array(mean) * multiplier
    if shift is not None:
        bias = bias + _array(shift)
    t.emit(node, g.Affine, [x], multiplier=multiplier, bias=bias)


def _channel_constant(t: _Tracer, node: fx.Node, x: str, constant: Any) -> g.FloatArray:
    """``constant`` as one value per channel of ``x``."""
    shape = t.shape(x)
    values = np.asarray(constant.double().numpy() if isinstance(constant, Tensor) else constant, np.float64)
    per_channel = (1, shape[1], *[1] * (len(shape) - 2))
    aligned = (1,) * (len(shape) - values.ndim) + values.shape
    if any(a not in (1, p) for a, p in zip(aligned, per_channel, strict=True)):
        raise t.fail(node, f"a constant must be one number or one per channel, found shape {values.shape} for {shape}")
    return np.broadcast_to(values.reshape(aligned), per_channel).reshape(shape[1]).copy()


def _affine(t: _Tracer, node: fx.Node, x: str, multiplier: Any, bias: Any) -> None:
    m, b = _channel_constant(t, node, x, multiplier), _channel_constant(t, node, x, bias)
    t.emit(node, g.Affine, [x], multiplier=m, bias=b)


@_handles("aten.add.Tensor", "aten.add_.Tensor", "aten.add.Scalar")
def _add(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    a, b, alpha = args
    if alpha != 1:
        raise t.fail(node, f"alpha must be 1, found {alpha}")
    if isinstance(a, str) and isinstance(b, str):
        t.emit(node, g.Add, [a, b])
    else:
        x, constant = (a, b) if isinstance(a, str) else (b, a)
        _affine(t, node, x, 1.0, constant)


@_handles("aten.sub.Tensor", "aten.sub.Scalar", "aten.sub_.Tensor")
def _sub(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    a, b, alpha = args
    if alpha != 1:
        raise t.fail(node, f"alpha must be 1, found {alpha}")
    if isinstance(a, str) and isinstance(b, str):
        t.emit(node, g.Sub, [a, b])
    elif isinstance(a, str):
        _affine(t, node, a, 1.0, -b)
    else:
        _affine(t, node, b, -1.0, a)


@_handles("aten.rsub.Scalar", "aten.rsub.Tensor")
def _rsub(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    x, other, alpha = args
    _sub(t, node, [other, x, alpha])


@_handles("aten.neg.default")
def _neg(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    _affine(t, node, args[0], -1.0, 0.0)


@_handles("aten.mul.Tensor", "aten.mul.Scalar", "aten.mul_.Tensor")
def _mul(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    a, b = args
    if isinstance(a, str) and isinstance(b, str):
        t.emit(node, g.Mul, [a, b])
    else:
        x, constant = (a, b) if isinstance(a, str) else (b, a)
        _affine(t, node, x, constant, 0.0)


@_handles("aten.div.Tensor", "aten.div.Scalar", "aten.div_.Tensor")
def _div(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    a, b = args
    if not isinstance(a, str):
        raise t.fail(node, "the numerator must depend on the input")
    if isinstance(b, int | float) and b == 0:
        raise t.fail(node, "division by zero")
    if isinstance(b, str):
        t.emit(node, g.Div, [a, b])
    else:
        _affine(t, node, a, 1.0 / b, 0.0)


@_handles("aten.sqrt.default")
def _sqrt(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    t.emit(node, g.Sqrt, [args[0]])


@_handles("aten.hardtanh.default", "aten.hardtanh_.default", "aten.clamp.default")
def _clip(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    x, low, high = args
    t.emit(
        node, g.Clip, [x], low=-math.inf if low is None else float(low), high=math.inf if high is None else float(high)
    )


@_handles("aten.relu.default", "aten.relu_.default")
def _relu(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    t.emit(node, g.Clip, [args[0]], low=0.0, high=math.inf)


@_handles("aten.relu6.default", "aten.relu6_.default")
def _relu6(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    t.emit(node, g.Clip, [args[0]], low=0.0, high=6.0)


@_handles("aten.prelu.default")
def _prelu(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    x, slope = args
    t.emit(node, g.PRelu, [x], slope=np.broadcast_to(_array(slope), t.shape(x)[1]).copy())


@_handles("aten.leaky_relu.default", "aten.leaky_relu_.default")
def _leaky_relu(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    x, slope = args
    t.emit(node, g.PRelu, [x], slope=np.full(t.shape(x)[1], float(slope)))


@_handles("aten.sigmoid.default", "aten.tanh.default")
def _elementwise(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    t.emit(node, g.Activation, [args[0]], kind=str(node.target).split(".")[1])


@_handles("aten.softmax.int")
def _softmax(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    x, dim, _ = args
    if len(t.shape(x)) != 2 or dim % 2 != 1:
        raise t.fail(node, f"softmax is over the last axis of [N, C], found axis {dim} of {t.shape(x)}")
    t.emit(node, g.Activation, [x], kind="softmax")


@_handles("aten.mean.dim")
def _mean(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    x, dims, keepdims, _ = args
    rank = len(t.shape(x))
    axes = tuple(sorted(d % rank for d in (dims or range(rank))))
    if 0 in axes:
        raise t.fail(node, "a mean over the batch depends on the batch")
    t.emit(node, g.Mean, [x], axes=axes, keepdims=bool(keepdims))


@_handles("aten.adaptive_avg_pool2d.default")
def _adaptive_avg_pool2d(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    x, size = args
    (height, width), (rows, columns) = t.shape(x)[2:], _pair(size)
    if (rows, columns) == (1, 1):
        t.emit(node, g.Mean, [x], axes=(2, 3), keepdims=True)
    elif height % rows or width % columns:
        raise t.fail(node, f"output size {rows}x{columns} does not divide the map {height}x{width}")
    else:
        kernel = (height // rows, width // columns)
        t.emit(node, g.AvgPool2d, [x], kernel=kernel, stride=kernel)


@_handles("aten.avg_pool2d.default")
def _avg_pool2d(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    x, kernel, stride, padding, ceil_mode, _, divisor = args
    if any(_pair(padding or 0)) or ceil_mode or divisor is not None:
        raise t.fail(node, "average pooling with padding, ceil_mode or divisor_override")
    t.emit(node, g.AvgPool2d, [x], kernel=_pair(kernel), stride=_pair(stride or kernel))


@_handles("aten.max_pool2d.default")
def _max_pool2d(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    x, kernel, stride, padding, dilation, ceil_mode = args
    if _pair(dilation) != (1, 1) or ceil_mode:
        raise t.fail(node, "max pooling with dilation or ceil_mode")
    t.emit(node, g.MaxPool2d, [x], kernel=_pair(kernel), stride=_pair(stride or kernel), padding=_pair(padding))


@_handles("aten.flatten.using_ints", "aten.view.default", "aten.reshape.default", "aten.squeeze.dims",
          "aten.squeeze.dim", "aten.unsqueeze.default")  # fmt: skip
def _reshape(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    x = args[0]
    shape = tuple(int(d) for d in node.meta["val"].shape)
    if not shape or shape[0] != t.shape(x)[0]:
        raise t.fail(node, f"a reshape must keep the batch dimension, found {t.shape(x)} to {shape}")
    if shape == t.shape(x):
        t.alias(node, x)
    else:
        t.emit(node, g.Reshape, [x], dtype=t.tensors[x].dtype, shape=shape[1:])


@_handles("aten.dropout.default", "aten.dropout_.default", "aten.feature_dropout.default", "aten.contiguous.default",
          "aten.clone.default", "aten.detach.default", "aten.to.dtype", "aten.alias.default")  # fmt: skip
def _identity(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    t.alias(node, args[0])


@_handles("aten.cat.default")
def _cat(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
    tensors, dim = args
    if dim % len(t.shape(tensors[0])) != 1 or not all(isinstance(x, str) for x in tensors):
        raise t.fail(node, f"only activations can be concatenated, along the channels; found axis {dim}")
    t.emit(node, g.Concat, list(tensors))


@_handles("aten.slice.Tensor")
def _slice(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
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
        t.bind(node, x)
    else:
        t.emit(node, g.Subsample, [x], step=steps)


@_handles("aten.pad.default", "aten.constant_pad_nd.default")
def _pad(t: _Tracer, node: fx.Node, args: list[Any]) -> None:
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
