"""Reading an ONNX file back: is it whole, what does it say of itself, and what are its layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto, helper

from bnnedge.errors import ExportError, one_line, printable
from bnnedge.export.description import parse_metadata
from bnnedge.export.targets.digest import check_digest
from bnnedge.export.targets.onnx import functions
from bnnedge.export.targets.onnx.structure import check_structure, graph_inputs, refuse_external_data
from bnnedge.export.targets.target import LayerRow
from bnnedge.kernels.layout import BIT_LAYOUT_VERSION

METADATA_KEY = "bnnedge"
"""Key of ``metadata_props`` whose value is the metadata as one JSON object."""
BIT_LAYOUT_KEY = "bnnedge.bit_layout_version"
"""Key of ``metadata_props`` with the version of the bit contract that the packed weights follow."""
SCALE_SUFFIX = "/scale"
"""Ends the name of the first node of a layer that is a ``Mul`` (or ``MatMul``) and an ``Add``."""
NHWC_SUFFIX = "/nhwc"
"""Ends the name of a float32 tensor in NHWC."""
BITS_SUFFIX = "/bits"
"""Ends the name of a tensor of packed signs, which is in NHWC."""

_INT8_PARAMETERS = {"QLinearConv": (3, 4, 8)}
_STEM_PARAMETERS = (3, 4, 7)
"""Positions of the inputs that hold the weight, its scale and the bias."""

_MALFORMED = (StopIteration, IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError)
"""What reading attributes and shapes raises where a node lacks them or has them of another type."""

Shapes = dict[str, tuple[int, ...]]


def load_model(data: bytes) -> ModelProto:
    """Parse and check a file's bytes. Raises ``ExportError`` in one line if they are no complete ONNX model.

    A model whose weights lie in other files is refused: a file cannot name what is read.
    """
    try:
        model = onnx.load_model_from_string(data)
        refuse_external_data(model)
        onnx.checker.check_model(model)
    except (DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise ExportError(f"not a complete ONNX file ({printable(one_line(error))}); export it again") from error
    if not all(isinstance(text, str) for text in _texts(model)):  # protobuf returns a name as bytes if it is not text
        raise ExportError("not a complete ONNX file (a name in it is not text); export it again")
    defined = {(function.domain, function.name) for function in model.functions}
    for node in model.graph.node:
        if node.domain == functions.DOMAIN and (node.domain, node.op_type) not in defined:
            raise ExportError(f"{printable(node.name)}: the file lacks the function {node.op_type}; export it again")
    layout = _property(model, BIT_LAYOUT_KEY)
    if layout not in (None, str(BIT_LAYOUT_VERSION)):
        raise ExportError(f"the ONNX file has bit layout {layout}, expected {BIT_LAYOUT_VERSION}; export it again")
    return model


def read_model(data: bytes) -> tuple[ModelProto, dict[str, Any]]:
    """A file from outside, found to be a network as bnnedge writes it, and its metadata.

    Raises ``ExportError`` for a file that is damaged or of another structure, or whose metadata is not its own.
    """
    model = load_model(data)
    text = _property(model, METADATA_KEY)
    if text is None:
        raise ExportError("the ONNX file holds no bnnedge metadata: it was not written by bnnedge")
    metadata = parse_metadata(text)
    check_digest(data, metadata)
    check_structure(model)
    inputs = graph_inputs(model)
    if "input_shape" in metadata:
        taken = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim[1:]]
        if len(inputs) != 1 or taken != metadata["input_shape"]:
            found = f"{len(inputs)} inputs, the first" if len(inputs) != 1 else "one"
            raise ExportError(
                f"the metadata says one input of {metadata['input_shape']}, the file has {found} of {taken}"
            )
    return model, metadata


def binary_nodes(model: ModelProto) -> list[NodeProto]:
    """The binary convolutions of ``model``, in execution order."""
    own = (node for node in model.graph.node if node.domain == functions.DOMAIN)
    return [node for node in own if functions.is_convolution(node.op_type)]


def input_channels(node: NodeProto) -> int:
    """The number of input channels of a binary convolution, all groups together."""
    channels: int = attribute(node, "channels")[0]
    group: int = next((a.i for a in node.attribute if a.name == "group"), 1)
    return channels * group


def attribute(node: NodeProto, name: str) -> Any:
    return next(helper.get_attribute_value(a) for a in node.attribute if a.name == name)


def describe_model(model: ModelProto) -> list[LayerRow]:
    """One row for every node that holds parameters; a ``Mul`` or ``MatMul`` and its ``Add`` are one row."""
    try:
        return list(_rows(model))
    except (onnx.shape_inference.InferenceError, *_MALFORMED) as error:
        reason = printable(one_line(error)) or type(error).__name__
        raise ExportError(f"the ONNX file has nodes at odds with each other: {reason}") from error


def _rows(model: ModelProto) -> Iterable[LayerRow]:
    shapes = _shapes(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    rows: list[LayerRow] = []
    for node in model.graph.node:
        # The first input is the data; constants behind it are the layer's parameters.
        constants = (initializers[name] for name in node.input[1:] if name in initializers)
        row = _row(node, [tensor for tensor in constants if tensor.dims], shapes)
        if row is not None and rows and row.name == rows[-1].name:
            row = _joined(rows.pop(), row)
        if row is not None:
            rows.append(row)
    return rows


def _row(node: NodeProto, parameters: list[TensorProto], shapes: Shapes) -> LayerRow | None:
    kind = _kind(node, parameters)
    if kind is None:
        return None
    int8 = node.op_type in _INT8_PARAMETERS or functions.is_stem(node.op_type)
    if int8:  # the weight, its scale and the bias are parameters; the other constants say what the codes mean
        kept = [node.input[i] for i in _INT8_PARAMETERS.get(node.op_type, _STEM_PARAMETERS)]
        parameters = [tensor for tensor in parameters if tensor.name in kept]
    binary = node.domain == functions.DOMAIN and not int8
    input_shape, output_shape = (_shape(shapes, names[0], node) for names in (node.input, node.output))
    sizes = [math.prod(tensor.dims) for tensor in parameters]
    weights = sizes[0]
    if binary:
        channels = attribute(node, "channels")[0]
        weights = math.prod(parameters[0].dims[:3]) * channels
        if functions.is_packed(node.op_type):
            input_shape = (input_channels(node), *input_shape[1:])
            output_shape = (parameters[0].dims[0], *output_shape[1:])
    if functions.is_stem(node.op_type):
        output_shape = _convolved_shape(node, parameters[0], input_shape)
    multiplies = binary or int8 or node.op_type in ("Conv", "Gemm", "MatMul")
    # Each weight is used once for every pixel of the output.
    macs = weights * math.prod(output_shape[1:]) if multiplies else 0
    is_parameter = [(int8 and i > 0) or tensor.data_type == TensorProto.FLOAT for i, tensor in enumerate(parameters)]
    floats = sum(size for size, counts in zip(sizes, is_parameter, strict=True) if counts)
    return LayerRow(
        name=printable(node.name.removesuffix(SCALE_SUFFIX)),
        kind=kind,
        input_shape=input_shape,
        output_shape=output_shape,
        binary_weights=weights if binary else 0,
        float_params=floats,
        weight_bytes=sum(_byte_count(tensor) for tensor in parameters),
        binary_macs=macs if binary else 0,
        float_macs=0 if binary or int8 else macs,
        reason=printable(node.doc_string),
        int8_weights=weights if int8 else 0,
        int8_macs=macs if int8 else 0,
    )


def _convolved_shape(node: NodeProto, weight: TensorProto, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The output shape [O, OH, OW] of a stem's convolution, before its max-pool."""
    fold = 2 if node.op_type.startswith(functions.SPACE_TO_DEPTH) else 1
    strides, pads = attribute(node, "strides"), attribute(node, "pads")
    room = [size // fold + pads[i] + pads[i + 2] - weight.dims[2 + i] for i, size in enumerate(shape[1:])]
    return (weight.dims[0], *(size // stride + 1 for size, stride in zip(room, strides, strict=True)))


def _kind(node: NodeProto, parameters: list[TensorProto]) -> str | None:
    """What ``node`` is called in the table; None if it holds no parameters."""
    if not parameters:
        return None
    if functions.is_stem(node.op_type):
        return "int8 conv {}x{}".format(*parameters[0].dims[2:4])
    if node.domain == functions.DOMAIN:
        if not functions.is_convolution(node.op_type):
            return None
        return "binary conv {}x{}".format(*parameters[0].dims[1:3])
    if node.op_type == "Conv":
        return "conv {}x{}".format(*parameters[0].dims[2:4])
    if node.op_type == "QLinearConv":
        weight = next(tensor for tensor in parameters if tensor.name == node.input[3])
        return "int8 conv {}x{}".format(*weight.dims[2:4])
    if node.op_type == "MatMul":
        return "conv 1x1"
    return {"Gemm": "linear", "Mul": "affine", "Add": "affine", "PRelu": "prelu"}.get(node.op_type)


def _joined(product: LayerRow, shift: LayerRow) -> LayerRow:
    return replace(
        product,
        output_shape=shift.output_shape,
        float_params=product.float_params + shift.float_params,
        weight_bytes=product.weight_bytes + shift.weight_bytes,
    )


def _shapes(model: ModelProto) -> Shapes:
    """Every known tensor shape without the batch dimension; an unknown size is 0."""
    infos = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    return {i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim[1:]) for i in infos}


def _shape(shapes: Shapes, tensor: str, node: NodeProto) -> tuple[int, ...]:
    """The shape [C, H, W] or [C] of a tensor of the file. For packed signs C is the number of bytes of a pixel."""
    shape = shapes.get(tensor, (0,))
    if 0 in shape:
        raise ExportError(f"{printable(node.name)}: the ONNX file does not tell the shape of {tensor!r}")
    return (shape[-1], *shape[:-1]) if tensor.endswith((NHWC_SUFFIX, BITS_SUFFIX)) else shape


def _byte_count(tensor: TensorProto) -> int:
    try:
        count: int = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError as error:
        raise ExportError(
            f"{printable(tensor.name)}: the ONNX file has an unknown data type, {error}; export it again"
        ) from error
    return count


def _texts(model: ModelProto) -> Iterator[str]:
    for node in model.graph.node:
        yield from (node.name, node.domain, node.op_type, *node.input, *node.output)
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)


def _property(model: ModelProto, key: str) -> str | None:
    return next((prop.value for prop in model.metadata_props if prop.key == key), None)
