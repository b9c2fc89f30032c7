"""Reading a TFLite file back: is it whole, what does it say of itself, what are its layers.

Interpreters trust a file and crash on a damaged one, so everything that they follow blindly is checked here first.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ConfigError, ExportError
from bnnedge.export.graph import Pair
from bnnedge.export.targets.target import LayerRow
from bnnedge.export.targets.tflite.writer import ABSENT, schema
from bnnedge.export.window import Window
from bnnedge.kernels.layout import unpack, words_for

IDENTIFIER = b"TFL3"
METADATA_NAME = "bnnedge"
"""Name of the metadata entry with the export's metadata, one JSON object."""
REASONS_NAME = "bnnedge.reasons"
"""Name of the metadata entry that says why a layer is not binary, a JSON object by layer."""
ROLES = ("weight", "multiplier", "bias", "threshold", "slope", "padding_correction")
"""The parameters of layer L are the constants ``L/<role>``."""
LCE_OPERATORS = ("LceQuantize", "LceDequantize", "LceBconv2d", "LceBMaxPool2d")
_BCONV2D_OPTIONS = (
    "channels_in",
    "dilation_height_factor",
    "dilation_width_factor",
    "fused_activation_function",
    "pad_values",
    "padding",
    "stride_height",
    "stride_width",
)
_DTYPES = {0: "f4", 1: "f2", 2: "i4", 3: "u1", 4: "i8", 6: "?", 7: "i2", 9: "i1", 10: "f8"}
"""NumPy's names for the schema's tensor types, little-endian."""
_MALFORMED = (struct.error, IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError)
"""What the generated readers raise when offsets and counts make no sense."""


def parse_model(data: bytes) -> Model:
    """The checked model in ``data``. Raises ``ExportError`` in one line if the bytes are no complete TFLite file."""
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise ExportError(f"not a TFLite file: expected the identifier TFL3, found {bytes(data[4:8])!r}")
    try:
        model = Model(schema().ModelT.InitFromPackedBuf(bytes(data), 0))
        model.check()
    except _MALFORMED as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ExportError(f"the TFLite file is damaged or cut off ({reason}); export or copy it again") from error
    return model


@dataclass(frozen=True)
class Operator:
    """One operator: its name (a builtin's in capitals, else the custom code), tensors and options."""

    code: str
    inputs: list[int]
    outputs: list[int]
    options: Any
    """The builtin's options table, or the custom operator's map."""


class Model:
    """The first subgraph of a TFLite model, with names instead of numbers."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        """The ``ModelT`` of the schema."""
        if not raw.subgraphs:
            raise ValueError("no subgraph")
        self.subgraph = raw.subgraphs[0]
        self.inputs = [int(i) for i in _items(self.subgraph.inputs)]
        self.outputs = [int(i) for i in _items(self.subgraph.outputs)]

    @cached_property
    def operators(self) -> list[Operator]:
        """In execution order."""
        builtin = {v: k for k, v in vars(schema().BuiltinOperator).items() if isinstance(v, int)}
        result = []
        for op in _items(self.subgraph.operators):
            kind = _nth(self.raw.operatorCodes, op.opcodeIndex)
            code = builtin[max(kind.deprecatedBuiltinCode, kind.builtinCode)]
            options = op.builtinOptions
            if code == "CUSTOM":
                code = kind.customCode.decode()
                options = _custom_options(op) if code in LCE_OPERATORS else None
            result.append(Operator(code, [int(i) for i in _items(op.inputs)], [int(i) for i in op.outputs], options))
        return result

    @cached_property
    def producers(self) -> dict[int, Operator]:
        """Which operator writes a tensor."""
        return {tensor: op for op in self.operators for tensor in op.outputs}

    @property
    def input_names(self) -> tuple[str, ...]:
        """What the inputs are called: as in the signature, or without one as their tensors."""
        return self._signature_names("inputs", self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """What the outputs are called: as in the signature, or without one as their tensors."""
        return self._signature_names("outputs", self.outputs)

    def _signature_names(self, side: str, tensors: list[int]) -> tuple[str, ...]:
        signatures = _items(self.raw.signatureDefs)
        named = {int(entry.tensorIndex): entry.name.decode() for s in signatures for entry in _items(getattr(s, side))}
        return tuple(named.get(tensor) or self.name(tensor) for tensor in tensors)

    def tap(self, tensors: list[int]) -> None:
        """Let ``tensors`` be the outputs, without the signature, which would no longer fit."""
        self.subgraph.outputs = tensors
        self.raw.signatureDefs = None

    def name(self, tensor: int) -> str:
        raw = self.subgraph.tensors[tensor].name
        return raw.decode() if raw else f"tensor {tensor}"

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(int(d) for d in _items(self.subgraph.tensors[tensor].shape))

    def is_int32(self, tensor: int) -> bool:
        return bool(self.subgraph.tensors[tensor].type == schema().TensorType.INT32)

    def is_int8(self, tensor: int) -> bool:
        return bool(self.subgraph.tensors[tensor].type == schema().TensorType.INT8)

    def bytes_of(self, tensor: int) -> int:
        """Size of a constant's data; 0 for a tensor computed at run time or absent."""
        return 0 if tensor == ABSENT else len(_items(self._data(tensor)))

    def constant(self, tensor: int) -> NDArray[Any]:
        """The values of a constant tensor."""
        raw = self.subgraph.tensors[tensor]
        return np.frombuffer(bytes(self._data(tensor)), f"<{_DTYPES[raw.type]}").reshape(self.shape(tensor))

    def metadata(self, name: str) -> dict[str, Any] | None:
        """The JSON object of a metadata entry; None if there is no such entry."""
        for entry in _items(self.raw.metadata):
            if entry.name == name.encode():
                value = json.loads(bytes(_nth(self.raw.buffers, entry.buffer).data))
                if not isinstance(value, dict):
                    raise ValueError(f"metadata {name} is not a JSON object")
                return value
        return None

    def check(self) -> None:
        """Raise ``ValueError`` or its like if an index, a size or an option is out of bounds."""
        if self.raw.version != 3:
            raise ValueError(f"schema version {self.raw.version}, expected 3")
        tensors = _items(self.subgraph.tensors)
        for index, tensor in enumerate(tensors):
            self.name(index)
            size = self.bytes_of(index)
            dtype = _DTYPES.get(tensor.type)
            if min(self.shape(index), default=0) < 0:
                raise ValueError(f"{self.name(index)} has a negative size")
            if size and dtype and size != math.prod(self.shape(index)) * np.dtype(dtype).itemsize:
                raise ValueError(f"{self.name(index)} has {size} bytes for shape {self.shape(index)}")
        for op in self.operators:
            if not all(ABSENT <= i < len(tensors) for i in op.inputs) or not op.outputs:
                raise ValueError(f"{op.code} reads tensors that do not exist")
            _check_lce(op)
        written = [*self.inputs, *self.outputs, *(i for op in self.operators for i in op.outputs)]
        if not self.inputs or not self.outputs or not all(0 <= i < len(tensors) for i in written):
            raise ValueError("inputs, outputs or results that do not exist")
        if any(len(set(names)) < len(names) for names in (self.input_names, self.output_names)):
            raise ValueError("two inputs or outputs of the same name")
        self.metadata(METADATA_NAME)
        self.metadata(REASONS_NAME)

    def _data(self, tensor: int) -> Any:
        return _nth(self.raw.buffers, self.subgraph.tensors[tensor].buffer).data


def _items(vector: Any) -> Any:
    return [] if vector is None else vector


def _nth(vector: Any, index: int) -> Any:
    if not 0 <= index < len(_items(vector)):
        raise IndexError(f"index {index} of {len(_items(vector))}")
    return vector[index]


def _custom_options(op: Any) -> dict[str, Any]:
    from flatbuffers import flexbuffers

    data = bytes(_items(op.customOptions))
    options = flexbuffers.Loads(data) if data else {}
    if not isinstance(options, dict):
        raise ValueError("custom options are not a map")
    return options


def _check_lce(op: Operator) -> None:
    if op.code != "LceBconv2d":
        return
    missing = [key for key in _BCONV2D_OPTIONS if not isinstance(op.options.get(key), int)]
    if missing or len(op.inputs) != 5:
        raise ValueError(f"LceBconv2d with {len(op.inputs)} of 5 inputs and without options {missing}")


def metadata_of(model: Model) -> dict[str, Any]:
    """The metadata that bnnedge stored; of another writer's file, such as LCE's converter's, only ``input_shape``."""
    metadata = model.metadata(METADATA_NAME)
    return {"input_shape": list(_channels_first(model.shape(model.inputs[0])))} if metadata is None else metadata


def describe_model(model: Model) -> list[LayerRow]:
    """One row a layer: operators whose parameters have the same ``<layer>/`` in front of their role are one layer."""
    rows: dict[str, LayerRow] = {}
    reasons = model.metadata(REASONS_NAME) or {}
    try:
        for op in model.operators:
            row = _row(model, op)
            if row is None:
                continue
            before = rows.get(row.name)
            rows[row.name] = _joined(before, row) if before else replace(row, reason=str(reasons.get(row.name, "")))
    except (*_MALFORMED, ConfigError) as error:
        raise ExportError(f"the TFLite file has operators at odds with their tensors: {error}") from error
    return list(rows.values())


def _row(model: Model, op: Operator) -> LayerRow | None:
    parameters = [i for i in op.inputs if model.bytes_of(i)]
    named = [i for i in parameters if model.name(i).rpartition("/")[2] in ROLES]
    if op.code == "GATHER":
        parameters = named
    if op.code not in _KINDS or not parameters:
        return None
    output_shape = _channels_first(model.shape(op.outputs[0]))
    binary = macs = 0
    weights = model.shape(op.inputs[1]) if len(op.inputs) > 1 else ()
    if op.code == "LceBconv2d":
        layer = _convolution(model, op)
        output_shape = (weights[0], *output_shape[1:])
        binary = layer.weight.size
        macs = binary * math.prod(output_shape[1:])
    elif op.code in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        macs = math.prod(weights) * math.prod(output_shape[1:])
    int8 = macs > 0 and not binary and model.is_int8(op.inputs[1])
    # Of an int8 layer: the scales of the weights, which are no tensor, and the bias in their steps.
    floats = [op.inputs[2], op.inputs[2]] if int8 else [i for i in parameters if not model.is_int32(i)]
    return LayerRow(
        name=model.name(named[0]).rpartition("/")[0] if named else model.name(op.outputs[0]),
        kind=("int8 " if int8 else "") + _KINDS[op.code].format(*weights[1:3]),
        input_shape=_input_shape(model, op),
        output_shape=output_shape,
        binary_weights=binary,
        float_params=sum(math.prod(model.shape(i)) for i in floats),
        weight_bytes=sum(model.bytes_of(i) for i in parameters) + (model.bytes_of(op.inputs[2]) if int8 else 0),
        binary_macs=macs if binary else 0,
        float_macs=0 if binary or int8 else macs,
        int8_weights=math.prod(weights) if int8 else 0,
        int8_macs=macs if int8 else 0,
    )


_KINDS = {
    "LceBconv2d": "binary conv {}x{}",
    "CONV_2D": "conv {}x{}",
    "DEPTHWISE_CONV_2D": "conv {}x{}",
    "FULLY_CONNECTED": "linear",
    "PRELU": "prelu",
    "MUL": "affine",
    "ADD": "affine",
    "SUB": "affine",
    "DIV": "affine",
    "GATHER": "padding correction",
}
"""Operators that hold parameters, and what they are called in the table."""


def _joined(row: LayerRow, later: LayerRow) -> LayerRow:
    return replace(
        row,
        output_shape=row.output_shape if later.kind == "padding correction" else later.output_shape,
        float_params=row.float_params + later.float_params,
        weight_bytes=row.weight_bytes + later.weight_bytes,
    )


def _channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Stored shape without the batch dimension, [C, H, W] for a map."""
    return (shape[3], shape[1], shape[2]) if len(shape) == 4 else shape[1:]


def _input_shape(model: Model, op: Operator) -> tuple[int, ...]:
    source = next(i for i in op.inputs if i != ABSENT and (not model.bytes_of(i) or op.code == "GATHER"))
    shape = _channels_first(model.shape(_unpadded(model, source)[0]))
    return (op.options["channels_in"], *shape[1:]) if op.code == "LceBconv2d" else shape


def _unpadded(model: Model, tensor: int) -> tuple[int, Pair | None]:
    """The tensor before an explicit PAD, and the pixels that it adds before rows and columns; None without a PAD."""
    producer = model.producers.get(tensor)
    if producer is None or producer.code not in ("PAD", "PADV2") or len(model.shape(tensor)) != 4:
        return tensor, None
    edges = model.constant(producer.inputs[1])
    return producer.inputs[0], (int(edges[1, 0]), int(edges[2, 0]))


@dataclass(frozen=True)
class BinaryLayer:
    """A binary convolution as the file holds it."""

    name: str
    signs: int
    """The packed tensor that enters it, before any padding."""
    channels: int
    weight: NDArray[np.int8]
    """{-1, +1}, [O, I/groups, kh, kw]."""
    stride: Pair
    dilation: Pair
    groups: int
    padding: Pair = (0, 0)
    in_float: bool = False
    """Whether it runs as a float convolution of the signs."""
    is_torch: bool = True
    """Whether ``padding`` zeros on both sides give the windows of the file; not so for SAME of other writers."""


def binary_layers(model: Model) -> Iterator[BinaryLayer]:
    """The binary convolutions of a file, also those that run in float on unpacked signs."""
    for op in model.operators:
        try:
            if op.code == "LceBconv2d":
                yield _convolution(model, op)
            elif op.code in ("CONV_2D", "DEPTHWISE_CONV_2D"):
                source = _unpadded(model, op.inputs[0])[0]
                producer = model.producers.get(source)
                if producer is not None and producer.code == "LceDequantize":
                    yield _convolution(model, op)
        except (*_MALFORMED, ConfigError) as error:
            raise ExportError(f"{model.name(op.outputs[0])}: cannot read the binary convolution: {error}") from error


def _convolution(model: Model, op: Operator) -> BinaryLayer:
    read = _bit_convolution if op.code == "LceBconv2d" else _float_convolution
    layer, is_same, is_zero_padded = read(model, op)
    source, edges = _unpadded(model, op.inputs[0])
    size, kernel = model.shape(source)[1:3], layer.weight.shape[2:]
    axes = zip(size, kernel, layer.stride, edges or (0, 0), layer.dilation, strict=True)
    windows = [Window(*axis) for axis in axes]
    if is_same and edges is None:
        windows = [replace(window, padding=window.same_edge) for window in windows]
        is_torch = is_zero_padded and all(window.is_same for window in windows)
    else:
        is_torch = not is_same and tuple(w.output for w in windows) == model.shape(op.outputs[0])[1:3]
    return replace(layer, padding=(windows[0].padding, windows[1].padding), is_torch=is_torch)


def _bit_convolution(model: Model, op: Operator) -> tuple[BinaryLayer, bool, bool]:
    """(layer without its padding, whether it is SAME, whether SAME means zeros)."""
    options = op.options
    words, channels = model.constant(op.inputs[1]), options["channels_in"]
    groups = words_for(channels) // words.shape[-1]
    layer = BinaryLayer(
        name=_layer_name(model, op),
        signs=_unpadded(model, op.inputs[0])[0],
        channels=channels,
        weight=unpack(words, channels // groups).transpose(0, 3, 1, 2),
        stride=(options["stride_height"], options["stride_width"]),
        dilation=(options["dilation_height_factor"], options["dilation_width_factor"]),
        groups=groups,
    )
    return layer, options["padding"] == 0, options["pad_values"] == 0


def _float_convolution(model: Model, op: Operator) -> tuple[BinaryLayer, bool, bool]:
    source = _unpadded(model, op.inputs[0])[0]
    axes = (0, 3, 1, 2) if op.code == "CONV_2D" else (3, 0, 1, 2)
    weight = np.sign(model.constant(op.inputs[1])).astype(np.int8).transpose(axes)
    channels = model.shape(source)[3]
    layer = BinaryLayer(
        name=_layer_name(model, op),
        signs=model.producers[source].inputs[0],
        channels=channels,
        weight=weight,
        stride=(op.options.strideH, op.options.strideW),
        dilation=(op.options.dilationHFactor, op.options.dilationWFactor),
        groups=channels // weight.shape[1],
        in_float=True,
    )
    return layer, op.options.padding == 0, True


def _layer_name(model: Model, op: Operator) -> str:
    layer, _, role = model.name(op.inputs[1]).rpartition("/")
    return layer if role == "weight" else model.name(op.outputs[0])
