"""The ONNX target: one file that stock ONNX Runtime runs and that the bnnedge operators speed up.

Float nodes become standard operators of opset 18, binary convolutions and what is fused with them the operators of
``onnx_functions.py``. A tensor of the graph has up to three forms in the file, each under its own name:

- ``t``: float32 as in the graph, images in NCHW;
- ``t/nhwc``: a float32 image in NHWC;
- ``t/bits``: packed signs, of a ``bits`` tensor.

A node writes the form that suits its operator; another form is converted to once, when a node first asks for it. So
everything between binary convolutions stays in NHWC. The float forms of a ``bits`` tensor are only sure to have the
right signs: ``Binarize`` itself leaves no trace in the file unless something needs real +-1 values.

Codes of an int8 stem are stored with 128 added, as unsigned bytes, and outside of our operators its weights too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import singledispatch
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from bnnedge.errors import ExportError
from bnnedge.export import graph as g
from bnnedge.export.passes.fuse_block import BinarizeBelow, Block, fuse_blocks, packs
from bnnedge.export.passes.fuse_stem import Stem, fuse_stem
from bnnedge.export.targets import onnx_functions
from bnnedge.export.targets.onnx_file import (
    BIT_LAYOUT_KEY,
    BITS_SUFFIX,
    METADATA_KEY,
    NHWC_SUFFIX,
    SCALE_SUFFIX,
    describe_model,
    load_model,
    metadata_of,
)
from bnnedge.export.targets.target import LayerRow, Target
from bnnedge.kernels.layout import BIT_LAYOUT_VERSION, words_for

IR_VERSION = 8
"""The oldest that has model-local functions; ONNX Runtime 1.17 reads it."""
_END = np.iinfo(np.int64).max

Form = Literal["plain", "nhwc", "bits"]
_PLAIN: Form = "plain"
_SUFFIX: dict[Form, str] = {"plain": "", "nhwc": NHWC_SUFFIX, "bits": BITS_SUFFIX}
_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


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
        self.graph = graph = fuse_stem(fuse_blocks(graph))
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.op_types: set[str] = set()
        self._shared: dict[tuple[str, bytes], str] = {}
        self._aliases: dict[str, str] = {}
        self._forms: dict[tuple[str, Form], str] = {(graph.input, "plain"): graph.input}
        self._infos: list[ValueInfoProto] = []
        self._real_bits = _tensors_needed_as_real_bits(graph)

    def model(self) -> ModelProto:
        for node in self.graph.nodes:
            _write(node, self)
        self.read(self.graph.output, "plain")
        graph = helper.make_graph(
            self.nodes,
            "bnnedge",
            [self._value_info(self.graph.input, "plain")],
            [self._value_info(self.graph.output, "plain")],
            list(self.constants.values()),
            value_info=self._infos,
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
        self,
        op_type: str,
        node: g.Node,
        inputs: Sequence[str],
        *,
        form: Form = "plain",
        name: str = "",
        output: str = "",
        **attributes: Any,
    ) -> str:
        """Append one ONNX node and return its output: ``node``'s in ``form``, or ``output``, a name of the file alone.

        Of ``inputs``, tensors of the graph are read as they are there; other names are those of the file.
        """
        resolved = [self.read(t, "plain") if t in self.graph.tensors else t for t in inputs]
        while resolved[-1] == "":
            resolved.pop()
        output = output or self.written(node.output, form)
        self.nodes.append(helper.make_node(op_type, resolved, [output], name=name or node.name, **attributes))
        return output

    def add_packed(
        self, op_type: str, node: g.Node, inputs: Sequence[str], outputs: Sequence[tuple[str, Form]], **attributes: Any
    ) -> None:
        """Append one node of our own domain; inputs are names of the file, outputs tensors of the graph."""
        self.op_types.add(op_type)
        names = [self.written(tensor, form) for tensor, form in outputs]
        domain = onnx_functions.DOMAIN
        self.nodes.append(helper.make_node(op_type, inputs, names, name=node.name, domain=domain, **attributes))
        self._infos += [self._value_info(*output) for output in outputs if output != (self.graph.output, _PLAIN)]

    def written(self, tensor: str, form: Form) -> str:
        """The name in the file of ``tensor`` in ``form``, which is there from now on."""
        name = self._forms[tensor, form] = tensor + _SUFFIX[form]
        return name

    def has(self, tensor: str, form: Form) -> bool:
        return (self._source(tensor, form), form) in self._forms

    def read(self, tensor: str, form: Form) -> str:
        """The name in the file of ``tensor`` in ``form``, converted if need be."""
        if self.has(tensor, form):
            return self._forms[self._source(tensor, form), form]
        if form == "bits":
            like = g.Node(name=f"{tensor}/pack", inputs=(), output=tensor)
            inputs = [self.read(tensor, "nhwc"), self.scalar(0.0)]
            self.add_packed(onnx_functions.PACK_SIGNS, like, inputs, [(tensor, "bits")])
            return self._forms[tensor, "bits"]
        if not self.has(tensor, "plain") and not self.has(tensor, "nhwc"):
            self._unpack(tensor)
            return self.read(tensor, form)
        source = self._source(tensor, form)
        if self.graph.tensors[tensor].shape[1:] == (1, 1, 1) and tensor != self.graph.output:
            return self.read(tensor, "nhwc" if form == "plain" else "plain")  # the same in both
        node = g.Node(name=f"{source}/to_{'nchw' if form == 'plain' else form}", inputs=(), output=source)
        other = self.read(tensor, "nhwc" if form == "plain" else "plain")
        return self.add("Transpose", node, [other], form=form, perm=_TO_NCHW if form == "plain" else _TO_NHWC)

    def _unpack(self, tensor: str) -> None:
        """Real +-1 values of packed signs."""
        node = g.Node(name=f"{tensor}/unpack", inputs=(), output=tensor)

        def add(op_type: str, *inputs: str, **attributes: Any) -> str:
            name = f"{node.name}/{op_type.lower()}"
            return self.add(op_type, node, inputs, name=name, output=name, **attributes)

        index = add("Cast", self.read(tensor, "bits"), to=TensorProto.INT32)
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        octets = add("Gather", self.shared("table", 1.0 - 2.0 * bits, np.float32), index, axis=0)
        channels = self.graph.tensors[tensor].shape[1]
        padded = add("Reshape", octets, self.shared("shape", (0, 0, 0, 32 * words_for(channels)), np.int64))
        limits = [("starts", (0,)), ("ends", (channels,)), ("axes", (3,))]
        self.add("Slice", node, [padded, *(self.shared(role, v, np.int64) for role, v in limits)], form="nhwc")

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

    def scalar(self, value: float) -> str:
        return self.shared("scalar", value, np.float32)

    def alias(self, node: g.Node) -> None:
        """Let the float forms of ``node``'s output be those of its input."""
        self._aliases[node.output] = self._source(node.inputs[0], "plain")

    def layout(self, node: g.Node) -> Form:
        """The form in which an element-wise node reads and writes: NHWC if one of its inputs is there in it."""
        if any(self.rank(tensor) != 4 for tensor in (*node.inputs, node.output)):
            return "plain"
        return "nhwc" if any(self.has(tensor, "nhwc") for tensor in node.inputs) else "plain"

    def quantization(self, quantization: g.Quantization | None) -> list[str]:
        """Scale and zero point of an ``int8`` tensor, as constants."""
        assert quantization is not None
        zero_point = quantization.zero_point + onnx_functions.UNSIGNED_ZERO
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

    def _source(self, tensor: str, form: Form) -> str:
        return tensor if form == "bits" else self._aliases.get(tensor, tensor)

    def _value_info(self, tensor: str, form: Form) -> ValueInfoProto:
        """Name, type and shape of a tensor of the file; own operators need it, as shapes do not go through them."""
        shape: list[str | int] = ["N", *self.graph.tensors[tensor].shape[1:]]
        if form != "plain":
            shape = [shape[axis] for axis in _TO_NHWC]
        if form == "bits":
            shape[-1] = 4 * words_for(self.graph.tensors[tensor].shape[1])
        kind = TensorProto.UINT8 if form == "bits" else TensorProto.FLOAT
        return helper.make_tensor_value_info(tensor + _SUFFIX[form], kind, shape)


def _tensors_needed_as_real_bits(graph: g.Graph) -> set[str]:
    """The ``bits`` tensors whose values matter, not only their signs."""
    needed = {graph.output}
    for node in reversed(graph.nodes):
        passes_on = isinstance(node, g.MaxPool2d | g.Reshape) and node.output not in needed
        if isinstance(node, Block):
            needed.update(node.inputs[1:])
        elif not passes_on and not isinstance(node, g.BinaryConv2d):
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
    pointwise = node.weight.shape[2:] == (1, 1) and node.groups == 1 and node.padding == (0, 0)
    if pointwise and out.layout(node) == "nhwc":
        _write_pointwise(node, out)
        return
    weight = out.parameter(node, "weight", node.weight)
    bias = out.parameter(node, "bias", node.bias)
    out.add("Conv", node, [node.inputs[0], weight, bias], doc_string=node.reason, **_window(node))


def _write_pointwise(node: g.Conv2d, out: _Writer) -> None:
    """A 1x1 convolution in NHWC."""
    x = out.read(node.inputs[0], "nhwc")
    if node.stride != (1, 1):
        name = f"{node.name}/subsample"
        x = out.add("Slice", node, [x, *_every(node.stride, "nhwc", out)], name=name, output=name + NHWC_SUFFIX)
    weight = out.parameter(node, "weight", np.ascontiguousarray(node.weight[:, :, 0, 0].T))
    if not node.bias.any():
        out.add("MatMul", node, [x, weight], form="nhwc", doc_string=node.reason)
        return
    bias = out.parameter(node, "bias", node.bias)
    name = node.name + SCALE_SUFFIX
    product = out.add("MatMul", node, [x, weight], name=name, output=name + NHWC_SUFFIX, doc_string=node.reason)
    out.add("Add", node, [product, bias], form="nhwc", doc_string=node.reason)


@_write.register
def _(node: g.SpaceToDepth, out: _Writer) -> None:
    out.add("SpaceToDepth", node, node.inputs, blocksize=2)


@_write.register
def _(node: g.Quantize, out: _Writer) -> None:
    out.add("QuantizeLinear", node, [node.inputs[0], *out.quantization(out.graph.tensors[node.output].quantization)])


@_write.register
def _(node: g.Dequantize, out: _Writer) -> None:
    quantization = out.graph.tensors[node.inputs[0]].quantization
    out.add("DequantizeLinear", node, [node.inputs[0], *out.quantization(quantization)])


@_write.register
def _(node: g.QuantizedConv2d, out: _Writer) -> None:
    zero = onnx_functions.UNSIGNED_ZERO  # see there
    weight = [
        out.parameter(node, "weight", (node.weight.astype(np.int32) + zero).astype(np.uint8)),
        out.parameter(node, "weight_scale", node.weight_scale),
        out.shared("weight_zero_point", zero, np.uint8),
    ]
    tensors = out.graph.tensors
    source, target = (out.quantization(tensors[name].quantization) for name in (node.inputs[0], node.output))
    inputs = [node.inputs[0], *source, *weight, *target, out.parameter(node, "bias", node.bias)]
    out.add("QLinearConv", node, inputs, doc_string=node.reason, strides=list(node.stride), pads=_pads(node))


def _pads(node: g.QuantizedConv2d) -> list[int]:
    (top, bottom), (left, right) = node.edges
    return [top, left, bottom, right]


@_write.register
def _(node: Stem, out: _Writer) -> None:
    conv, pool = node.conv, node.pool
    attributes: dict[str, Any] = {"strides": list(conv.stride), "pads": _pads(conv)}
    if pool is not None:
        pads = [*pool.padding, *pool.padding]
        attributes |= {"pool_shape": list(pool.kernel), "pool_strides": list(pool.stride), "pool_pads": pads}
    inputs = [
        out.read(node.inputs[0], "plain"),
        *out.quantization(node.source),
        out.parameter(node, "weight", conv.weight),
        out.parameter(node, "weight_scale", conv.weight_scale),
        *out.quantization(node.target),
        out.parameter(node, "bias", conv.bias),
        out.parameter(node, "lowest", np.zeros(len(conv.bias)) if node.lowest is None else node.lowest),
    ]
    outputs: list[tuple[str, Form]] = [(node.output, "nhwc")]
    if node.signs is not None:
        inputs.append(out.scalar(0.0) if node.limit is None else out.parameter(node, "limit", node.limit))
        outputs.append((node.signs, "bits"))
    op_type = onnx_functions.quantized_conv(node.folds, pool is not None, node.signs is not None)
    out.add_packed(op_type, node, inputs, outputs, doc_string=conv.reason, **attributes)


@_write.register
def _(node: g.Linear, out: _Writer) -> None:
    weight = out.parameter(node, "weight", node.weight)
    bias = out.parameter(node, "bias", node.bias)
    out.add("Gemm", node, [node.inputs[0], weight, bias], doc_string=node.reason, transB=1)


def _packed_weight(node: g.BinaryConv2d, out: _Writer) -> str:
    if not (np.abs(node.weight) == 1).all():
        raise ExportError(f"{node.name}: a binary weight must be -1 or +1 everywhere, found other values")
    return out.parameter(node, "weight", onnx_functions.pack_weight(node.weight))


def _scale(node: g.BinaryConv2d, out: _Writer) -> list[str]:
    return [out.parameter(node, "multiplier", node.multiplier), out.parameter(node, "bias", node.bias)]


@_write.register
def _(node: g.BinaryConv2d, out: _Writer) -> None:
    weight = _packed_weight(node, out)
    attributes = {"channels": [node.weight.shape[1]], **_window(node)}
    if node.threshold is None:
        inputs = [out.read(node.inputs[0], "plain"), weight, *_scale(node, out)]
        out.add_packed(onnx_functions.BINARY_CONV, node, inputs, [(node.output, _PLAIN)], **attributes)
        return
    threshold = out.parameter(node, "threshold", node.threshold.astype(np.int32))
    op_type, form = onnx_functions.BINARY_CONV_THRESHOLD, _PLAIN
    if packs(node):
        op_type, form = onnx_functions.PACKED_CONV_THRESHOLD, "bits"
    inputs = [out.read(node.inputs[0], form), weight, threshold]
    out.add_packed(op_type, node, inputs, [(node.output, form)], **attributes)


@_write.register
def _(node: Block, out: _Writer) -> None:
    steps = []
    attributes = {"channels": [node.conv.weight.shape[1]], **_window(node.conv)}
    inputs = [out.read(node.inputs[0], "bits"), _packed_weight(node.conv, out), *_scale(node.conv, out)]
    outputs: list[tuple[str, Form]] = [(node.output, "nhwc")]
    if len(node.inputs) == 2:
        steps.append("Add")
        inputs.append(out.read(node.inputs[1], "nhwc"))
    if node.slope is not None:
        steps.append("PRelu")
        inputs.append(out.parameter(node, "slope", node.slope))
        # Adding -0.0 changes nothing, not even a -0.0.
        inputs.append(out.scalar(-0.0) if node.offset is None else out.parameter(node, "offset", node.offset))
    if node.clips:
        steps.append("Clip")
        attributes |= {"low": node.low, "high": node.high}
    if node.signs is not None:
        steps.append("Sign")
        inputs.append(out.scalar(0.0) if node.limit is None else out.parameter(node, "limit", node.limit))
        outputs.append((node.signs, "bits"))
    out.add_packed(onnx_functions.packed_conv(steps), node, inputs, outputs, **attributes)


@_write.register
def _(node: BinarizeBelow, out: _Writer) -> None:
    x = out.read(node.inputs[0], "nhwc")
    limit = out.read(node.inputs[1], "nhwc") if node.limit is None else out.parameter(node, "limit", node.limit)
    out.add_packed(onnx_functions.PACK_SIGNS, node, [x, limit], [(node.output, "bits")])


@_write.register
def _(node: g.Binarize, out: _Writer) -> None:
    if not out.needs_real_bits(node.output):
        out.alias(node)
        return
    form = out.layout(node)
    inputs = [out.read(node.inputs[0], form), out.scalar(0.0)]
    negative = out.add("Less", node, inputs, name=f"{node.name}/negative", output=f"{node.output}/negative")
    out.add("Where", node, [negative, out.scalar(-1.0), out.scalar(1.0)], form=form)


@_write.register
def _(node: g.Affine, out: _Writer) -> None:
    form = out.layout(node)
    per_channel = (-1,) if form == "nhwc" else (-1, *[1] * (out.rank(node.output) - 2))
    source = out.read(node.inputs[0], form)
    scales, shifts = bool((node.multiplier != 1).any()), bool((node.bias != 0).any())
    if scales:
        multiplier = out.parameter(node, "multiplier", node.multiplier.reshape(per_channel))
        suffix = SCALE_SUFFIX if shifts else ""
        output = node.output + suffix + _SUFFIX[form] if shifts else ""
        source = out.add("Mul", node, [source, multiplier], form=form, name=node.name + suffix, output=output)
    if shifts or not scales:
        out.add("Add", node, [source, out.parameter(node, "bias", node.bias.reshape(per_channel))], form=form)


@_write.register
def _(node: g.Clip, out: _Writer) -> None:
    form = out.layout(node)
    source = out.read(node.inputs[0], form)
    if (node.low, node.high) == (0, np.inf):
        out.add("Relu", node, [source], form=form)
        return
    bounds = [out.scalar(bound) if np.isfinite(bound) else "" for bound in (node.low, node.high)]
    out.add("Clip", node, [source, *bounds], form=form)


@_write.register
def _(node: g.PRelu, out: _Writer) -> None:
    form = out.layout(node)
    slope = node.slope if form == "nhwc" else node.slope.reshape(-1, *[1] * (out.rank(node.output) - 2))
    out.add("PRelu", node, [out.read(node.inputs[0], form), out.parameter(node, "slope", slope)], form=form)


@_write.register
def _(node: g.Activation, out: _Writer) -> None:
    if node.kind == "softmax":
        out.add("Softmax", node, node.inputs, axis=-1)
        return
    form = out.layout(node)
    out.add({"sigmoid": "Sigmoid", "tanh": "Tanh"}[node.kind], node, [out.read(node.inputs[0], form)], form=form)


@_write.register(g.Add)
@_write.register(g.Sub)
@_write.register(g.Mul)
@_write.register(g.Div)
@_write.register(g.Sqrt)
def _(node: g.Node, out: _Writer) -> None:
    form = out.layout(node)
    out.add(type(node).__name__, node, [out.read(tensor, form) for tensor in node.inputs], form=form)


@_write.register
def _(node: g.Mean, out: _Writer) -> None:
    x = node.inputs[0]
    if not out.has(x, "nhwc") or node.axes not in ((1, 2, 3), (2, 3)):
        out.add("ReduceMean", node, [x, out.shared("axes", node.axes, np.int64)], keepdims=int(node.keepdims))
        return
    # One axis to reduce, in the order of the memory: a runtime that moves transposes cannot change the rounding.
    _, channels, height, width = out.graph.tensors[x].shape
    kept = () if node.axes == (1, 2, 3) else (channels,)
    shape = out.shared("shape", (0, -1, *kept), np.int64)
    name = f"{node.name}/rows"
    rows = out.add("Reshape", node, [out.read(x, "nhwc"), shape], name=name, output=name)
    name = f"{node.name}/mean"
    if kept:
        # As a product: ONNX Runtime's own mean of one image's rows, [49, 512], took 60 us, this 14 (1.32, Zen 3).
        weights = out.shared("weights", np.full((1, height * width), 1 / (height * width)), np.float32)
        mean = out.add("MatMul", node, [weights, rows], name=name, output=name)
    else:
        mean = out.add("ReduceMean", node, [rows, out.shared("axes", (1,), np.int64)], name=name, output=name)
    image = (0, 1, 1, *(kept or (1,))) if node.keepdims else (0, *kept)
    form: Form = "nhwc" if node.keepdims else "plain"
    out.add("Reshape", node, [mean, out.shared("shape", image, np.int64)], form=form)


@_write.register
def _(node: g.MaxPool2d, out: _Writer) -> None:
    source = node.inputs[0]
    pads = [*node.padding, *node.padding]
    attributes: dict[str, Any] = {"kernel_shape": list(node.kernel), "strides": list(node.stride), "pads": pads}
    if out.graph.tensors[source].dtype == "bits" and not out.needs_real_bits(node.output):
        inputs = [out.read(source, "bits")]
        out.add_packed(onnx_functions.PACKED_MAX_POOL, node, inputs, [(node.output, "bits")], **attributes)
    else:
        out.add("MaxPool", node, node.inputs, **attributes)


@_write.register
def _(node: g.AvgPool2d, out: _Writer) -> None:
    out.add("AveragePool", node, node.inputs, kernel_shape=list(node.kernel), strides=list(node.stride))


@_write.register
def _(node: g.Reshape, out: _Writer) -> None:
    x = node.inputs[0]
    # The order of the values is the same in both forms of an image of one pixel. 0 keeps the batch dimension.
    single = out.graph.tensors[x].shape[2:] == (1, 1) and out.has(x, "nhwc")
    source = out.read(x, "nhwc" if single else "plain")
    shape, form = node.shape, _PLAIN
    if len(shape) == 3 and shape[1:] == (1, 1):
        shape, form = (1, 1, shape[0]), "nhwc"
    out.add("Reshape", node, [source, out.shared("shape", (0, *shape), np.int64)], form=form)


def _every(step: g.Pair, form: Form, out: _Writer) -> list[str]:
    """The inputs of a ``Slice`` that takes every ``step``-th row and column."""
    axes = (1, 2) if form == "nhwc" else (2, 3)
    limits = [("starts", (0, 0)), ("ends", (_END, _END)), ("axes", axes), ("steps", step)]
    return [out.shared(role, value, np.int64) for role, value in limits]


@_write.register
def _(node: g.Subsample, out: _Writer) -> None:
    form = out.layout(node)
    out.add("Slice", node, [out.read(node.inputs[0], form), *_every(node.step, form, out)], form=form)


@_write.register
def _(node: g.PadChannels, out: _Writer) -> None:
    form = out.layout(node)
    # Of all axes: ONNX Runtime up to 1.32 moves a Transpose past a Pad and forgets that there may be only some.
    pads = np.zeros((2, len(out.graph.tensors[node.output].shape)), np.int64)
    pads[:, 3 if form == "nhwc" else 1] = node.before, node.after
    out.add("Pad", node, [out.read(node.inputs[0], form), out.shared("pads", tuple(pads.ravel()), np.int64)], form=form)


@_write.register
def _(node: g.Concat, out: _Writer) -> None:
    form = out.layout(node)
    inputs = [out.read(tensor, form) for tensor in node.inputs]
    out.add("Concat", node, inputs, form=form, axis=3 if form == "nhwc" else 1)
