"""Reading a TFLite file back: is it whole, and what does it say of itself.

Interpreters trust a file and crash on a damaged one, so everything that they follow blindly is checked here first.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ExportError, one_line, printable
from bnnedge.export.description import MOST_INPUT_NUMBERS, MOST_METADATA_BYTES, parse_metadata
from bnnedge.export.targets.digest import check_digest
from bnnedge.export.targets.tflite.writer import ABSENT, BUILTINS, schema
from bnnedge.schema import read_json

IDENTIFIER = b"TFL3"
METADATA_NAME = "bnnedge"
"""Name of the metadata entry with the export's metadata, one JSON object."""
REASONS_NAME = "bnnedge.reasons"
"""Name of the metadata entry that says why a layer is not binary, a JSON object by layer."""
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
_OPTIONAL_FROM = {
    "CONV_2D": 2,
    "DEPTHWISE_CONV_2D": 2,
    "FULLY_CONNECTED": 2,
    "TRANSPOSE_CONV": 3,
    "LceBconv2d": 2,
    **dict.fromkeys(BUILTINS - {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}, 100),
    **dict.fromkeys(set(LCE_OPERATORS) - {"LceBconv2d"}, 100),
}
"""The first input that an operator may do without. LiteRT crashes on others that are left out."""
_MOST_BYTES = 2**31
"""Bytes of one tensor; the offsets of this format reach no further."""
_LARGEST = 2**20
"""The largest number of channels and the largest stride or dilation of a binary convolution."""
_STRIDED = ("strideH", "strideW", "dilationHFactor", "dilationWFactor", "filterHeight", "filterWidth")
MALFORMED = (
    struct.error,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
)
"""What the generated readers raise when offsets and counts make no sense."""


def parse_model(data: bytes) -> Model:
    """The checked model in ``data``. Raises ``ExportError`` in one line if the bytes are no complete TFLite file."""
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise ExportError(f"not a TFLite file: expected the identifier TFL3, found {bytes(data[4:8])!r}")
    try:
        model = Model(schema().ModelT.InitFromPackedBuf(bytes(data), 0))
        model.check()
    except MALFORMED as error:
        reason = printable(one_line(error, most=120)) or type(error).__name__
        raise ExportError(f"the TFLite file is damaged or cut off ({reason}); export or copy it again") from error
    return model


@dataclass(frozen=True)
class Operator:
    """One operator. ``code`` is a builtin operator's name in capitals, or the code of a custom operator."""

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
        if len(_items(raw.subgraphs)) != 1:
            raise ValueError(f"expected one subgraph, found {len(_items(raw.subgraphs))}")
        self.subgraph = raw.subgraphs[0]
        self.inputs = [int(i) for i in _items(self.subgraph.inputs)]
        self.outputs = [int(i) for i in _items(self.subgraph.outputs)]

    @cached_property
    def operators(self) -> list[Operator]:
        """The operators in execution order."""
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
        """The operator that writes each tensor."""
        return {tensor: op for op in self.operators for tensor in op.outputs}

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs in the signature; without a signature those of their tensors."""
        return self._signature_names("inputs", self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs in the signature; without a signature those of their tensors."""
        return self._signature_names("outputs", self.outputs)

    def _signature_names(self, side: str, tensors: list[int]) -> tuple[str, ...]:
        signatures = _items(self.raw.signatureDefs)
        named = {int(entry.tensorIndex): entry.name.decode() for s in signatures for entry in _items(getattr(s, side))}
        return tuple(named.get(tensor) or self.name(tensor) for tensor in tensors)

    def tap(self, tensors: list[int]) -> None:
        """Make ``tensors`` the outputs, and remove the signature, which no longer fits."""
        self.subgraph.outputs = tensors
        self.raw.signatureDefs = None

    def name(self, tensor: int) -> str:
        """The name of a tensor; bytes in it that are not UTF-8 are escaped."""
        raw = self.subgraph.tensors[tensor].name
        return raw.decode(errors="backslashreplace") if raw else f"tensor {tensor}"

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

    def entry(self, name: str) -> bytes | None:
        """The bytes of a metadata entry; None if there is no such entry."""
        for entry in _items(self.raw.metadata):
            if entry.name == name.encode():
                return bytes(_items(_nth(self.raw.buffers, entry.buffer).data))
        return None

    def metadata(self) -> dict[str, Any] | None:
        """What bnnedge wrote of the file. Raises ``ExportError`` if it is damaged."""
        text = self.entry(METADATA_NAME)
        return None if text is None else parse_metadata(text)

    def reasons(self) -> dict[str, Any]:
        """Why layers are not binary, by layer. Raises ``ExportError`` if it is damaged."""
        text = self.entry(REASONS_NAME) or b"{}"
        what = "the reasons of the file"
        if len(text) > MOST_METADATA_BYTES:
            raise ExportError(f"{what}: expected at most {MOST_METADATA_BYTES:,} bytes, found {len(text):,}")
        reasons = read_json(text, what, ExportError)
        if not isinstance(reasons, dict):
            raise ExportError(f"{what}: expected a JSON object, found a {type(reasons).__name__}")
        return reasons

    def check(self) -> None:
        """Raise ``ValueError`` or its like if an index, a size or an option is out of bounds."""
        if self.raw.version != 3:
            raise ValueError(f"schema version {self.raw.version}, expected 3")
        for index in range(len(_items(self.subgraph.tensors))):
            self._check_tensor(index)
        count = len(_items(self.subgraph.tensors))
        written = [*self.inputs, *self.outputs, *(i for op in self.operators for i in op.outputs)]
        if not self.inputs or not self.outputs or not all(0 <= i < count for i in written):
            raise ValueError("inputs, outputs or results that do not exist")
        for tensor in (*self.inputs, *self.outputs):  # LiteRT takes no other names of these than UTF-8
            (self.subgraph.tensors[tensor].name or b"").decode()
        self._check_order()
        if any(len(set(names)) < len(names) for names in (self.input_names, self.output_names)):
            raise ValueError("two inputs or outputs of the same name")

    def _check_tensor(self, index: int) -> None:
        tensor, shape, size = self.subgraph.tensors[index], self.shape(index), self.bytes_of(index)
        dtype = _DTYPES.get(tensor.type)
        if min(shape, default=0) < 0:
            raise ValueError(f"{self.name(index)} has a negative size")
        wanted = math.prod(shape) * (np.dtype(dtype).itemsize if dtype else 1)
        if wanted > _MOST_BYTES:
            raise ValueError(f"{self.name(index)} has the shape {shape}, more than {_MOST_BYTES:,} bytes")
        if size and dtype and size != wanted:
            raise ValueError(f"{self.name(index)} has {size} bytes for shape {shape}")

    def _check_order(self) -> None:
        """Each operator must read what is there before it runs: inputs, constants, variables and earlier results."""
        tensors = _items(self.subgraph.tensors)
        known = {i for i, tensor in enumerate(tensors) if self.bytes_of(i) or tensor.isVariable or 0 in self.shape(i)}
        known |= {ABSENT, *self.inputs}
        for op in self.operators:
            if not all(ABSENT <= i < len(tensors) for i in op.inputs) or not op.outputs:
                raise ValueError(f"{op.code} reads tensors that do not exist")
            if ABSENT in op.inputs[: _OPTIONAL_FROM.get(op.code, 0)]:
                raise ValueError(f"{op.code} lacks an input that it needs")
            if unknown := [self.name(i) for i in op.inputs if i not in known]:
                raise ValueError(f"{op.code} reads {unknown[0]} before it is computed")
            if set(op.outputs) & {*self.inputs, *(i for i in op.outputs if self.bytes_of(i))}:
                raise ValueError(f"{op.code} writes to an input or a constant")
            _check_options(op)
            known.update(op.outputs)

    def _data(self, tensor: int) -> Any:
        return _nth(self.raw.buffers, self.subgraph.tensors[tensor].buffer).data


def _items(vector: Any) -> Any:
    return [] if vector is None else vector


def _nth(vector: Any, index: int) -> Any:
    if not 0 <= index < len(_items(vector)):
        raise IndexError(f"index {index} of {len(_items(vector))}")
    return vector[index]


def _custom_options(op: Any) -> dict[str, Any]:
    """The map of an LCE operator. It holds plain numbers alone, so nothing below them is followed."""
    from flatbuffers import flexbuffers

    data = bytes(_items(op.customOptions))
    if not data:
        return {}
    root = flexbuffers.GetRoot(data)
    if not root.IsMap or len(root.AsMap) > 100:
        raise ValueError("custom options are not a map of at most 100 entries")
    values = zip(root.AsMap.Keys, root.AsMap.Values, strict=True)
    return {key.AsKey: value.Value for key, value in values if value.IsNumeric or value.IsBool}


def _check_options(op: Operator) -> None:
    for name in _STRIDED:
        if not 1 <= getattr(op.options, name, 1) <= _LARGEST:
            raise ValueError(f"{op.code} with {name} {getattr(op.options, name)}")
    if op.code != "LceBconv2d":
        return
    missing = [key for key in _BCONV2D_OPTIONS if not isinstance(op.options.get(key), int)]
    if missing or len(op.inputs) != 5:
        raise ValueError(f"LceBconv2d with {len(op.inputs)} of 5 inputs and without options {missing}")
    for key in _BCONV2D_OPTIONS:
        least = 1 if key.startswith(("channels", "stride", "dilation")) else 0
        if not least <= op.options[key] <= _LARGEST:
            raise ValueError(f"LceBconv2d with {key} {op.options[key]}")


def channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape [C, H, W] or [C] of a tensor that is stored as [N, H, W, C] or [N, C]."""
    return (shape[3], shape[1], shape[2]) if len(shape) == 4 else shape[1:]


def read_model(data: bytes) -> tuple[Model, dict[str, Any]]:
    """A file from outside and its metadata, which for another writer's file, such as LCE's converter's, is its shape.

    Raises ``ExportError`` for a file that is damaged, computes nothing, or whose metadata is not its own.
    """
    model = parse_model(data)
    metadata = model.metadata()
    if metadata is not None:
        check_digest(data, metadata)
    model.reasons()
    if not model.operators or set(model.inputs) & set(model.outputs):
        raise ExportError("the TFLite file has no operators between an input and an output; export the network again")
    shape = list(channels_first(model.shape(model.inputs[0])))
    if not shape or math.prod(shape) > MOST_INPUT_NUMBERS:
        raise ExportError(
            f"the TFLite file takes inputs of {shape}; expected a batch, of at most {MOST_INPUT_NUMBERS:,} numbers each"
        )
    if metadata is None:
        return model, {"input_shape": shape}
    if "input_shape" in metadata and (len(model.inputs) != 1 or metadata["input_shape"] != shape):
        found = f"{len(model.inputs)} inputs, the first" if len(model.inputs) != 1 else "one"
        raise ExportError(f"the metadata says one input of {metadata['input_shape']}, the file has {found} of {shape}")
    return model, metadata
