"""The ONNX target: one file that stock ONNX Runtime runs and that the bnnedge operators speed up.

Float nodes become standard operators of opset 18, binary convolutions the operators of ``onnx_functions.py``. Those
take the sign of their input themselves, so a ``bits`` tensor is any float tensor with the right signs: ``Binarize``
leaves no trace in the file unless something needs real +-1 values. Codes of an int8 stem are stored with 128 added, as
unsigned bytes: those are what x86 multiplies fast by the signed bytes of the weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import singledispatch
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from bnnedge.errors import ExportError
from bnnedge.export import graph as g
from bnnedge.export.targets import onnx_functions
from bnnedge.export.targets.onnx_file import (
    BIT_LAYOUT_KEY,
    METADATA_KEY,
    SCALE_SUFFIX,
    describe_model,
    load_model,
    metadata_of,
)
from bnnedge.export.targets.target import LayerRow, Target
from bnnedge.kernels.layout import BIT_LAYOUT_VERSION

IR_VERSION = 8
"""The oldest that has model-local functions; ONNX Runtime 1.17 reads it."""
_END = np.iinfo(np.int64).max


class OnnxTarget(Target):
    """``.onnx``, opset 18; weights of binary convolutions take one bit each, rounded up to 32 channels."""

    suffix: ClassVar[str] = ".onnx"
    runtimes: ClassVar[tuple[str, ...]] = ("onnxruntime+bnnedge", "onnxruntime")
    judges: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    def write(self, graph: g.Graph) -> bytes:
        """The file's bytes, the same for the same graph. The batch dimension is ``N`` in all shapes."""
        model = _Writer(graph.validate()).model()
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"the graph does not make a valid ONNX file: {_one_line(error)}") from error
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    def read_metadata(self, data: bytes) -> dict[str, Any]:
        return metadata_of(load_model(data))

    def describe(self, data: bytes) -> list[LayerRow]:
        return describe_model(load_model(data))


class _Writer:
    """The ONNX model of one graph while it grows."""

    def __init__(self, graph: g.Graph) -> None:
        self.graph = graph
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.op_types: set[str] = set()
        self._shared: dict[tuple[str, bytes], str] = {}
        self._aliases: dict[str, str] = {}
        self._real_bits = _tensors_needed_as_real_bits(graph)

    def model(self) -> ModelProto:
        for node in self.graph.nodes:
            _write(node, self)
        graph = helper.make_graph(
            self.nodes,
            "bnnedge",
            [self._value_info(self.graph.input)],
            [self._value_info(self.graph.output)],
            list(self.constants.values()),
        )
        opsets = [helper.make_opsetid("", onnx_functions.OPSET)]
        if self.op_types:
            opsets.append(helper.make_opsetid(onnx_functions.DOMAIN, onnx_functions.DOMAIN_VERSION))
        metadata = self.graph.metadata
        model = helper.make_model(
            graph,
            ir_version=IR_VERSION,
            opset_imports=opsets,
            functions=[onnx_functions.function(name) for name in sorted(self.op_types)],
            producer_name=str(metadata.get("producer", "bnnedge")),
            producer_version=str(metadata.get("bnnedge_version", "")),
        )
        helper.set_model_props(model, {METADATA_KEY: _as_json(metadata), BIT_LAYOUT_KEY: str(BIT_LAYOUT_VERSION)})
        return model

    def add(
        self, op_type: str, node: g.Node, inputs: Sequence[str], *, name: str = "", output: str = "", **attributes: Any
    ) -> str:
        """Append one ONNX node and return its output; name and output are those of ``node`` unless given."""
        output = output or node.output
        resolved = [self._aliases.get(tensor, tensor) for tensor in inputs]
        while resolved[-1] == "":
            resolved.pop()
        self.nodes.append(helper.make_node(op_type, resolved, [output], name=name or node.name, **attributes))
        return output

    def parameter(self, node: g.Node, role: str, value: NDArray[Any]) -> str:
        """A constant that belongs to ``node``: float64 goes to float32, integers stay as they are."""
        if value.dtype.kind == "f":
            with np.errstate(over="ignore"):
                value = value.astype(np.float32)
            if not np.isfinite(value).all():
                raise ExportError(f"{node.name}: {role} has a value that is not finite in float32")
        name = self._new_name(f"{node.name}.{role}")
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def shared(self, role: str, value: Any, dtype: type[np.generic]) -> str:
        """A constant that any node with the same value uses: shapes, axes, bounds."""
        array = np.asarray(value, dtype=dtype)
        key = (f"{role} {array.dtype} {array.shape}", array.tobytes())
        if key not in self._shared:
            name = self._new_name(role)
            self.constants[name] = numpy_helper.from_array(array, name)
            self._shared[key] = name
        return self._shared[key]

    def alias(self, node: g.Node) -> None:
        """Make ``node``'s output another name of its input."""
        self._aliases[node.output] = self._aliases.get(node.inputs[0], node.inputs[0])

    def quantization(self, tensor: str) -> list[str]:
        """Scale and zero point of an ``int8`` tensor, as constants."""
        quantization = self.graph.tensors[tensor].quantization
        assert quantization is not None
        zero_point = quantization.zero_point - g.LOWEST_CODE
        return [self.shared("scale", quantization.scale, np.float32), self.shared("zero_point", zero_point, np.uint8)]

    def rank(self, tensor: str) -> int:
        return len(self.graph.tensors[tensor].shape)

    def needs_real_bits(self, tensor: str) -> bool:
        return tensor in self._real_bits

    def _new_name(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.constants or name in self.graph.tensors:
            name, count = f"{wanted}_{count}", count + 1
        return name

    def _value_info(self, tensor: str) -> ValueInfoProto:
        shape: list[str | int | None] = ["N", *self.graph.tensors[tensor].shape[1:]]
        return helper.make_tensor_value_info(tensor, TensorProto.FLOAT, shape)


def _tensors_needed_as_real_bits(graph: g.Graph) -> set[str]:
    """The ``bits`` tensors whose values matter, not only their signs."""
    needed = {graph.output}
    for node in reversed(graph.nodes):
        passes_on = isinstance(node, g.MaxPool2d | g.Reshape) and node.output not in needed
        if not passes_on and not isinstance(node, g.BinaryConv2d):
            needed.update(node.inputs)
    return {name for name in needed if graph.tensors[name].dtype == "bits"}


def _as_json(metadata: dict[str, Any]) -> str:
    try:
        return json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise ExportError(f"the metadata of the graph must be plain JSON values: {error}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@singledispatch
def _write(node: g.Node, out: _Writer) -> None:
    """Append the ONNX form of one graph node."""
    raise ExportError(f"{node.name}: the ONNX target has no form for {type(node).__name__}")


def _window(node: g.Conv2d | g.BinaryConv2d) -> dict[str, Any]:
    return {
        "strides": list(node.stride),
        "pads": [*node.padding, *node.padding],
        "dilations": list(node.dilation),
        "group": node.groups,
    }


@_write.register
def _(node: g.Conv2d, out: _Writer) -> None:
    weight = out.parameter(node, "weight", node.weight)
    bias = out.parameter(node, "bias", node.bias)
    out.add("Conv", node, [node.inputs[0], weight, bias], doc_string=node.reason, **_window(node))


@_write.register
def _(node: g.SpaceToDepth, out: _Writer) -> None:
    out.add("SpaceToDepth", node, node.inputs, blocksize=2)


@_write.register
def _(node: g.Quantize, out: _Writer) -> None:
    out.add("QuantizeLinear", node, [node.inputs[0], *out.quantization(node.output)])


@_write.register
def _(node: g.Dequantize, out: _Writer) -> None:
    out.add("DequantizeLinear", node, [node.inputs[0], *out.quantization(node.inputs[0])])


@_write.register
def _(node: g.QuantizedConv2d, out: _Writer) -> None:
    weight = [
        out.parameter(node, "weight", node.weight),
        out.parameter(node, "weight_scale", node.weight_scale),
        out.shared("weight_zero_point", 0, np.int8),
    ]
    source, target = (out.quantization(tensor) for tensor in (node.inputs[0], node.output))
    inputs = [node.inputs[0], *source, *weight, *target, out.parameter(node, "bias", node.bias)]
    (top, bottom), (left, right) = node.edges
    pads = [top, left, bottom, right]
    out.add("QLinearConv", node, inputs, doc_string=node.reason, strides=list(node.stride), pads=pads)


@_write.register
def _(node: g.Linear, out: _Writer) -> None:
    weight = out.parameter(node, "weight", node.weight)
    bias = out.parameter(node, "bias", node.bias)
    out.add("Gemm", node, [node.inputs[0], weight, bias], doc_string=node.reason, transB=1)


@_write.register
def _(node: g.BinaryConv2d, out: _Writer) -> None:
    if not (np.abs(node.weight) == 1).all():
        raise ExportError(f"{node.name}: a binary weight must be -1 or +1 everywhere, found other values")
    inputs = [node.inputs[0], out.parameter(node, "weight", onnx_functions.pack_weight(node.weight))]
    if node.threshold is None:
        op_type = onnx_functions.BINARY_CONV
        inputs += [out.parameter(node, "multiplier", node.multiplier), out.parameter(node, "bias", node.bias)]
    else:
        op_type = onnx_functions.BINARY_CONV_THRESHOLD
        inputs.append(out.parameter(node, "threshold", node.threshold.astype(np.int32)))
    out.op_types.add(op_type)
    channels = [node.weight.shape[1]]
    out.add(op_type, node, inputs, domain=onnx_functions.DOMAIN, channels=channels, **_window(node))


@_write.register
def _(node: g.Binarize, out: _Writer) -> None:
    if not out.needs_real_bits(node.output):
        out.alias(node)
        return
    zero, minus, plus = (out.shared("scalar", value, np.float32) for value in (0.0, -1.0, 1.0))
    negative = out.add(
        "Less", node, [node.inputs[0], zero], name=f"{node.name}/negative", output=f"{node.output}/negative"
    )
    out.add("Where", node, [negative, minus, plus])


@_write.register
def _(node: g.Affine, out: _Writer) -> None:
    per_channel = (-1, *[1] * (out.rank(node.output) - 2))
    source = node.inputs[0]
    scales, shifts = bool((node.multiplier != 1).any()), bool((node.bias != 0).any())
    if scales:
        multiplier = out.parameter(node, "multiplier", node.multiplier.reshape(per_channel))
        names = {"name": node.name + SCALE_SUFFIX, "output": node.output + SCALE_SUFFIX} if shifts else {}
        source = out.add("Mul", node, [source, multiplier], **names)
    if shifts or not scales:
        out.add("Add", node, [source, out.parameter(node, "bias", node.bias.reshape(per_channel))])


@_write.register
def _(node: g.Clip, out: _Writer) -> None:
    if (node.low, node.high) == (0, np.inf):
        out.add("Relu", node, node.inputs)
        return
    bounds = [out.shared("scalar", bound, np.float32) if np.isfinite(bound) else "" for bound in (node.low, node.high)]
    out.add("Clip", node, [node.inputs[0], *bounds])


@_write.register
def _(node: g.PRelu, out: _Writer) -> None:
    slope = node.slope.reshape(-1, *[1] * (out.rank(node.output) - 2))
    out.add("PRelu", node, [node.inputs[0], out.parameter(node, "slope", slope)])


@_write.register
def _(node: g.Activation, out: _Writer) -> None:
    if node.kind == "softmax":
        out.add("Softmax", node, node.inputs, axis=-1)
    else:
        out.add({"sigmoid": "Sigmoid", "tanh": "Tanh"}[node.kind], node, node.inputs)


@_write.register(g.Add)
@_write.register(g.Sub)
@_write.register(g.Mul)
@_write.register(g.Div)
@_write.register(g.Sqrt)
def _(node: g.Node, out: _Writer) -> None:
    out.add(type(node).__name__, node, node.inputs)


@_write.register
def _(node: g.Mean, out: _Writer) -> None:
    axes = out.shared("axes", node.axes, np.int64)
    out.add("ReduceMean", node, [node.inputs[0], axes], keepdims=int(node.keepdims))


@_write.register
def _(node: g.MaxPool2d, out: _Writer) -> None:
    pads = [*node.padding, *node.padding]
    out.add("MaxPool", node, node.inputs, kernel_shape=list(node.kernel), strides=list(node.stride), pads=pads)


@_write.register
def _(node: g.AvgPool2d, out: _Writer) -> None:
    out.add("AveragePool", node, node.inputs, kernel_shape=list(node.kernel), strides=list(node.stride))


@_write.register
def _(node: g.Reshape, out: _Writer) -> None:
    # 0 keeps the batch dimension, symbolic as it is.
    out.add("Reshape", node, [node.inputs[0], out.shared("shape", (0, *node.shape), np.int64)])


@_write.register
def _(node: g.Subsample, out: _Writer) -> None:
    limits = [("starts", (0, 0)), ("ends", (_END, _END)), ("axes", (2, 3)), ("steps", node.step)]
    out.add("Slice", node, [node.inputs[0], *(out.shared(role, value, np.int64) for role, value in limits)])


@_write.register
def _(node: g.PadChannels, out: _Writer) -> None:
    pads = out.shared("pads", (node.before, node.after), np.int64)
    out.add("Pad", node, [node.inputs[0], pads, "", out.shared("axes", (1,), np.int64)])


@_write.register
def _(node: g.Concat, out: _Writer) -> None:
    out.add("Concat", node, node.inputs, axis=1)
