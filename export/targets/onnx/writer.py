"""The ONNX model while it grows: names, constants, and the forms in which a tensor is in the file.

A tensor of the graph has up to three forms in the file, each under its own name:

- ``t``: float32 as in the graph, images in NCHW;
- ``t/nhwc``: a float32 image in NHWC;
- ``t/bits``: packed signs, of a ``bits`` tensor.

A node writes the form that suits its operator; another form is converted to once, when a node first asks for it. So
everything between binary convolutions stays in NHWC. The float forms of a ``bits`` tensor are only sure to have the
right signs: ``Binarize`` itself leaves no trace in the file unless something needs the numbers -1 and +1.

Codes of an int8 stem are stored with 128 added, as unsigned bytes, and outside of our operators its weights too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from bnnedge.errors import ExportError
from bnnedge.export import graph as g
from bnnedge.export.targets.digest import with_blank
from bnnedge.export.targets.onnx import functions
from bnnedge.export.targets.onnx.reader import BIT_LAYOUT_KEY, BITS_SUFFIX, METADATA_KEY, NHWC_SUFFIX
from bnnedge.kernels.layout import BIT_LAYOUT_VERSION, words_for

IR_VERSION = 8
"""The oldest version of the format that has model-local functions; ONNX Runtime 1.17 reads it."""

Form = Literal["plain", "nhwc", "bits"]
SUFFIX: dict[Form, str] = {"plain": "", "nhwc": NHWC_SUFFIX, "bits": BITS_SUFFIX}
_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


class OnnxWriter:
    """The ONNX model of one graph while it grows."""

    def __init__(self, graph: g.Graph) -> None:
        self.graph = graph
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.op_types: set[str] = set()
        self._shared: dict[tuple[str, bytes], str] = {}
        self._aliases: dict[str, str] = {}
        self._forms: dict[tuple[str, Form], str] = {(name, "plain"): name for name in graph.inputs}
        self._infos: list[ValueInfoProto] = []
        self._real_bits = _tensors_needed_as_real_bits(graph)

    def model(self) -> ModelProto:
        """The whole model, once every node is in it."""
        for output in self.graph.outputs:
            self.read(output, "plain")
        graph = helper.make_graph(
            self.nodes,
            "bnnedge",
            [self._value_info(name, "plain") for name in self.graph.inputs],
            [self._value_info(name, "plain") for name in self.graph.outputs],
            list(self.constants.values()),
            value_info=self._infos,
        )
        opsets = [helper.make_opsetid("", functions.OPSET)]
        if self.op_types:
            opsets.append(helper.make_opsetid(functions.DOMAIN, functions.DOMAIN_VERSION))
        metadata = self.graph.metadata
        model = helper.make_model(
            graph,
            ir_version=IR_VERSION,
            opset_imports=opsets,
            functions=[functions.function(name) for name in sorted(self.op_types)],
            producer_name=str(metadata.get("producer", "bnnedge")),
            producer_version=str(metadata.get("bnnedge_version", "")),
        )
        helper.set_model_props(
            model, {METADATA_KEY: as_json(with_blank(metadata)), BIT_LAYOUT_KEY: str(BIT_LAYOUT_VERSION)}
        )
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
        return self._append(op_type, name or node.name, resolved, output or self.written(node.output, form), attributes)

    def add_packed(
        self, op_type: str, name: str, inputs: Sequence[str], outputs: Sequence[tuple[str, Form]], **attributes: Any
    ) -> None:
        """Append one node of our own domain; inputs are names of the file, outputs tensors of the graph."""
        self.op_types.add(op_type)
        names = [self.written(tensor, form) for tensor, form in outputs]
        domain = functions.DOMAIN
        self.nodes.append(helper.make_node(op_type, inputs, names, name=name, domain=domain, **attributes))
        inner = [(tensor, form) for tensor, form in outputs if form != "plain" or tensor not in self.graph.outputs]
        self._infos += [self._value_info(*output) for output in inner]

    def _append(
        self, op_type: str, name: str, inputs: Sequence[str], output: str, attributes: Mapping[str, Any]
    ) -> str:
        """Append one standard node; a missing optional input at the end is left out."""
        given = list(inputs)
        while given[-1] == "":
            given.pop()
        self.nodes.append(helper.make_node(op_type, given, [output], name=name, **attributes))
        return output

    def written(self, tensor: str, form: Form) -> str:
        """Declare that the file holds ``tensor`` in ``form`` and return its name there."""
        name = self._forms[tensor, form] = tensor + SUFFIX[form]
        return name

    def has(self, tensor: str, form: Form) -> bool:
        return (self._source(tensor, form), form) in self._forms

    def read(self, tensor: str, form: Form) -> str:
        """The name in the file of ``tensor`` in ``form``; it is converted if the file has it in another form only."""
        if self.has(tensor, form):
            return self._forms[self._source(tensor, form), form]
        if form == "bits":
            inputs = [self.read(tensor, "nhwc"), self.scalar(0.0)]
            self.add_packed(functions.PACK_SIGNS, f"{tensor}/pack", inputs, [(tensor, "bits")])
            return self._forms[tensor, "bits"]
        if not self.has(tensor, "plain") and not self.has(tensor, "nhwc"):
            self._unpack(tensor)
            return self.read(tensor, form)
        source = self._source(tensor, form)
        other = self.read(tensor, "nhwc" if form == "plain" else "plain")
        if self.graph.tensors[tensor].shape[1:] == (1, 1, 1) and tensor not in self.graph.outputs:
            return other  # the same in both forms
        name = f"{source}/to_{'nchw' if form == 'plain' else form}"
        permutation = _TO_NCHW if form == "plain" else _TO_NHWC
        return self._append("Transpose", name, [other], self.written(source, form), {"perm": permutation})

    def _unpack(self, tensor: str) -> None:
        """Write the numbers -1 and +1 of packed signs, in NHWC."""
        unpack = f"{tensor}/unpack"

        def add(op_type: str, *inputs: str, **attributes: Any) -> str:
            name = f"{unpack}/{op_type.lower()}"
            return self._append(op_type, name, inputs, name, attributes)

        index = add("Cast", self.read(tensor, "bits"), to=TensorProto.INT32)
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        octets = add("Gather", self.shared("table", 1.0 - 2.0 * bits, np.float32), index, axis=0)
        channels = self.graph.tensors[tensor].shape[1]
        padded = add("Reshape", octets, self.shared("shape", (0, 0, 0, 32 * words_for(channels)), np.int64))
        limits = [("starts", (0,)), ("ends", (channels,)), ("axes", (3,))]
        inputs = [padded, *(self.shared(role, v, np.int64) for role, v in limits)]
        self._append("Slice", unpack, inputs, self.written(tensor, "nhwc"), {})

    def parameter(self, node: g.Node, role: str, value: NDArray[Any]) -> str:
        """A constant that belongs to ``node``: float64 goes to float32, integers stay as they are.

        Weights are stored once for all calls of a layer.
        """
        if value.dtype.kind == "f":
            with np.errstate(over="ignore"):
                value = value.astype(np.float32)
            if not np.isfinite(value).all():
                raise ExportError(f"{node.name}: {role} has a value that is not finite in float32")
        key = (f"{role} {value.dtype} {value.shape}", value.tobytes())
        if role == "weight" and key in self._shared:
            return self._shared[key]
        name = self._shared[key] = self._new_name(f"{node.name}.{role}")
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
        """Use the float forms of ``node``'s input as those of its output."""
        self._aliases[node.output] = self._source(node.inputs[0], "plain")

    def layout(self, node: g.Node) -> Form:
        """The form in which an element-wise node reads and writes: NHWC if one of its inputs is there in it."""
        if any(self.rank(tensor) != 4 for tensor in (*node.inputs, node.output)):
            return "plain"
        return "nhwc" if any(self.has(tensor, "nhwc") for tensor in node.inputs) else "plain"

    def quantization(self, quantization: g.Quantization | None) -> list[str]:
        """Scale and zero point of an ``int8`` tensor, as constants."""
        assert quantization is not None
        zero_point = quantization.zero_point + functions.UNSIGNED_ZERO
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
        """Name, type and shape of a tensor of the file. Shape inference does not know the outputs of our operators."""
        shape: list[str | int] = ["N", *self.graph.tensors[tensor].shape[1:]]
        if form != "plain":
            shape = [shape[axis] for axis in _TO_NHWC]
        if form == "bits":
            shape[-1] = 4 * words_for(self.graph.tensors[tensor].shape[1])
        kind = TensorProto.UINT8 if form == "bits" else TensorProto.FLOAT
        return helper.make_tensor_value_info(tensor + SUFFIX[form], kind, shape)


def _tensors_needed_as_real_bits(graph: g.Graph) -> set[str]:
    """The ``bits`` tensors whose numbers matter, not only their signs: those that something reads as float32.

    A node without weights that reads and writes bits passes its input on; a convolution needs signs alone.
    """
    needed = set(graph.outputs)
    for node in reversed(graph.nodes):
        given = graph.dtypes(node)
        passes_on = not node.weights() and "bits" in node.writes(given) and not needed.isdisjoint(node.outputs)
        for tensor, read in zip(node.inputs, node.reads(given), strict=True):
            if read != "bits" or passes_on:
                needed.add(tensor)
    return {name for name in needed if graph.tensors[name].dtype == "bits"}


def as_json(metadata: dict[str, Any]) -> str:
    """The metadata as text. Raises ``ExportError`` for values that JSON cannot hold."""
    try:
        return json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise ExportError(f"the metadata of the graph must be plain JSON values: {error}") from error
