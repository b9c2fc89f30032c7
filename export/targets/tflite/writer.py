"""Writing a TFLite flatbuffer (schema version 3, identifier ``TFL3``) operator by operator.

Every data buffer is aligned to 16 bytes, as the schema asks; operator codes and equal buffers are stored once.
Kernels on AArch64 read constants in blocks and go up to 28 bytes past their end: the tables of tensors and operators
come after the buffers in the file, so such a read stays inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import MissingDependencyError

ElementType = Literal["float32", "int32", "int8"]
ALIGNMENT = 16
ABSENT = -1
"""The index that stands for an optional input that is left out."""

_OPTIONS = {
    "ADD": "AddOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "CONCATENATION": "ConcatenationOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "DIV": "DivOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "GATHER": "GatherOptions",
    "LOGISTIC": "",
    "MAXIMUM": "MaximumMinimumOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "MUL": "MulOptions",
    "PAD": "PadOptions",
    "PADV2": "PadV2Options",
    "PRELU": "",
    "QUANTIZE": "QuantizeOptions",
    "RELU": "",
    "RELU6": "",
    "RELU_N1_TO_1": "",
    "RESHAPE": "ReshapeOptions",
    "SOFTMAX": "SoftmaxOptions",
    "SPACE_TO_DEPTH": "SpaceToDepthOptions",
    "SQRT": "",
    "STRIDED_SLICE": "StridedSliceOptions",
    "SUB": "SubOptions",
    "TANH": "",
    "TRANSPOSE": "TransposeOptions",
}
"""Builtin operators that can be written, with the schema's table for their options."""
BUILTINS = frozenset(_OPTIONS)
"""Names of the builtin operators that can be written."""


@lru_cache(maxsize=1)
def schema() -> Any:
    """The TFLite schema as Python classes, from the ai-edge-litert package."""
    try:
        return import_module("ai_edge_litert.schema_py_generated")
    except ImportError as error:
        reason = f"ai-edge-litert cannot be imported ({error})"
        raise MissingDependencyError(f"{reason}: pip install ai-edge-litert") from error


def serialize(model: Any) -> bytes:
    """The bytes of a ``ModelT``, with aligned buffers."""
    import flatbuffers

    model.buffers = [_aligned(buffer) for buffer in model.buffers]
    builder = flatbuffers.Builder(1024 + sum(len(b.data) + ALIGNMENT for b in model.buffers if b.data is not None))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@lru_cache(maxsize=1)
def _aligned_buffer_class() -> Any:
    class AlignedBuffer(schema().BufferT):  # type: ignore[misc]
        """A buffer whose bytes are aligned; the generated class aligns them to 1 byte."""

        def Pack(self, builder: Any) -> int:  # noqa: N802, the generated code calls it
            vector = None
            if self.data is not None:
                count = len(self.data)
                builder.StartVector(1, count, ALIGNMENT)
                builder.head -= count
                builder.Bytes[builder.head : builder.head + count] = bytes(self.data)
                vector = builder.EndVector()
            schema().BufferStart(builder)
            if vector is not None:
                schema().BufferAddData(builder, vector)
            return int(schema().BufferEnd(builder))

    return AlignedBuffer


def _aligned(buffer: Any) -> Any:
    return _aligned_buffer_class()(data=None if buffer.data is None else np.asarray(buffer.data, np.uint8))


def _element(values: NDArray[Any]) -> ElementType:
    name = str(values.dtype)
    if name not in get_args(ElementType):
        raise ValueError(f"a constant is one of {', '.join(get_args(ElementType))}, found {name}")
    return name  # type: ignore[return-value]


class TfliteWriter:
    """A file of one subgraph while it is written. Tensors are known by index; operators run in the order of adding."""

    def __init__(self) -> None:
        self._schema = schema()
        self._buffers: list[Any] = [self._schema.BufferT()]  # buffer 0 is the empty one by convention
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: dict[tuple[str, str], int] = {}
        self._buffer_of: dict[bytes, int] = {}
        self._literals: dict[tuple[str, tuple[int, ...], bytes], int] = {}

    def tensor(self, name: str, shape: Sequence[int], element: ElementType = "float32") -> int:
        """A tensor that is computed at run time, or the graph's input."""
        return self._add_tensor(name, shape, element, 0)

    def constant(self, name: str, values: NDArray[Any]) -> int:
        """A constant tensor with a name of its own; float32, int32 or int8."""
        return self._add_tensor(name, values.shape, _element(values), self._buffer(values.tobytes()))

    def quantize(self, tensor: int, scale: Sequence[float] | NDArray[np.float64], zero_point: int = 0) -> None:
        """Let code q of ``tensor`` mean (q - zero_point) scale; one scale, or one for each index of axis 0."""
        self._tensors[tensor].quantization = self._schema.QuantizationParametersT(
            scale=[float(np.float32(s)) for s in scale], zeroPoint=[zero_point] * len(scale)
        )

    def copy_quantization(self, source: int, target: int) -> None:
        """Let the codes of ``target`` mean what those of ``source`` do."""
        self._tensors[target].quantization = self._tensors[source].quantization

    def literal(self, values: NDArray[Any]) -> int:
        """A constant tensor without a meaningful name, such as axes, paddings and shapes; equal ones are shared."""
        key = (str(values.dtype), values.shape, values.tobytes())
        if key not in self._literals:
            self._literals[key] = self.constant(f"literal/{len(self._literals)}", values)
        return self._literals[key]

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The stored shape of a tensor."""
        return tuple(int(d) for d in self._tensors[tensor].shape)

    def element(self, tensor: int) -> ElementType:
        """The element type of a tensor."""
        names = {getattr(self._schema.TensorType, element.upper()): element for element in get_args(ElementType)}
        return names[self._tensors[tensor].type]  # type: ignore[no-any-return]

    def builtin(self, operator: str, inputs: Sequence[int], output: int, **options: Any) -> int:
        """Append a builtin operator; ``options`` are fields of its options table. Returns ``output``."""
        table = _OPTIONS[operator]
        values = getattr(self._schema, f"{table}T")() if table else None
        for name, value in options.items():
            if not hasattr(values, name):
                raise ValueError(f"{table} of {operator} has no field {name!r}")
            setattr(values, name, value)
        op = self._append(operator, "", inputs, output)
        op.builtinOptions = values
        op.builtinOptionsType = getattr(self._schema.BuiltinOptions, table) if table else 0
        return output

    def custom(self, code: str, inputs: Sequence[int], output: int, options: bytes = b"") -> int:
        """Append a custom operator with its FlexBuffers ``options``. Returns ``output``."""
        op = self._append("CUSTOM", code, inputs, output)
        op.customOptions = np.frombuffer(options, np.uint8) if options else None
        return output

    def finish(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        metadata: dict[str, bytes],
        signature: tuple[Sequence[str], Sequence[str]] | None = None,
    ) -> bytes:
        """The file; ``metadata`` values go into buffers of their own, ``signature`` names the inputs and outputs."""
        s = self._schema
        subgraph = s.SubGraphT(
            tensors=self._tensors, inputs=list(inputs), outputs=list(outputs), operators=self._operators, name="main"
        )
        entries = [s.MetadataT(name=name, buffer=self._buffer(value)) for name, value in metadata.items()]
        codes = [self._operator_code(*key) for key in self._codes]
        model = s.ModelT(
            version=3,
            operatorCodes=codes,
            subgraphs=[subgraph],
            description="bnnedge",
            buffers=self._buffers,
            metadata=entries,
        )
        if signature is not None:
            sides = (zip(*side, strict=True) for side in zip(signature, (inputs, outputs), strict=True))
            maps = [[s.TensorMapT(name=name, tensorIndex=tensor) for name, tensor in side] for side in sides]
            entry = s.SignatureDefT(inputs=maps[0], outputs=maps[1], signatureKey="serving_default", subgraphIndex=0)
            model.signatureDefs = [entry]
        return serialize(model)

    def _operator_code(self, operator: str, custom: str) -> Any:
        code = getattr(self._schema.BuiltinOperator, operator)
        # Readers older than the 32-bit field look at the 8-bit one, whose largest value means "see the other".
        return self._schema.OperatorCodeT(
            deprecatedBuiltinCode=min(code, 127), builtinCode=code, customCode=custom or None, version=1
        )

    def _append(self, operator: str, custom: str, inputs: Sequence[int], output: int) -> Any:
        index = self._codes.setdefault((operator, custom), len(self._codes))
        op = self._schema.OperatorT(opcodeIndex=index, inputs=list(inputs), outputs=[output])
        self._operators.append(op)
        return op

    def _add_tensor(self, name: str, shape: Sequence[int], element: ElementType, buffer: int) -> int:
        code = getattr(self._schema.TensorType, element.upper())
        tensor = self._schema.TensorT(shape=[int(d) for d in shape], type=code, buffer=buffer, name=name, hasRank=True)
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _buffer(self, data: bytes) -> int:
        if data not in self._buffer_of:
            self._buffer_of[data] = len(self._buffers)
            self._buffers.append(self._schema.BufferT(data=np.frombuffer(data, np.uint8)))
        return self._buffer_of[data]
