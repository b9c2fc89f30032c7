"""Reading a TFLite file back: is it whole, and what does it say of itself.

Interpreters trust a file and crash on a damaged one, so everything that they follow blindly is checked here first.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ExportError
from bnnedge.export.targets.tflite.writer import ABSENT, schema

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
MALFORMED = (struct.error, IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError)
"""What the generated readers raise when offsets and counts make no sense."""


def parse_model(data: bytes) -> Model:
    """The checked model in ``data``. Raises ``ExportError`` in one line if the bytes are no complete TFLite file."""
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise ExportError(f"not a TFLite file: expected the identifier TFL3, found {bytes(data[4:8])!r}")
    try:
        model = Model(schema().ModelT.InitFromPackedBuf(bytes(data), 0))
        model.check()
    except MALFORMED as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
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
        if not raw.subgraphs:
            raise ValueError("no subgraph")
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


def channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape [C, H, W] or [C] of a tensor that is stored as [N, H, W, C] or [N, C]."""
    return (shape[3], shape[1], shape[2]) if len(shape) == 4 else shape[1:]


def metadata_of(model: Model) -> dict[str, Any]:
    """The metadata that bnnedge stored. For another writer's file, such as LCE's converter's, it is ``input_shape``."""
    metadata = model.metadata(METADATA_NAME)
    return {"input_shape": list(channels_first(model.shape(model.inputs[0])))} if metadata is None else metadata
