"""TFLite files of one operator, the options of LCE's operators, and changes to files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from bnnedge.export.targets.tflite.reader import parse_model
from bnnedge.export.targets.tflite.writer import ABSENT, TfliteWriter, schema, serialize
from tests.kernels.litert.running import Array

SAME, VALID = 0, 1
NONE, RELU, RELU_N1_TO_1, RELU6, TANH = range(5)


def model_of(op: str, options: bytes, entry: Array, result: Array, constants: Sequence[Array | None] = ()) -> bytes:
    """A file of one operator; int8 tensors get scale 1 and zero point 0 (see ``requantized``)."""
    writer = TfliteWriter()
    source = writer.tensor("input", entry.shape, cast(Any, entry.dtype.name))
    weights = [ABSENT if c is None else writer.constant(f"constant{i}", c) for i, c in enumerate(constants)]
    target = writer.tensor("output", result.shape, cast(Any, result.dtype.name))
    writer.custom(op, [source, *weights], target, options)
    return requantized(writer.finish([source], [target], {}), input=(1.0, 0), output=(1.0, 0))


def requantized(data: bytes, **parameters: tuple[float, int]) -> bytes:
    raw = parse_model(data).raw
    for tensor in raw.subgraphs[0].tensors:
        if tensor.type == schema().TensorType.INT8 and tensor.name.decode() in parameters:
            scale, zero_point = parameters[tensor.name.decode()]
            tensor.quantization = schema().QuantizationParametersT(scale=[scale], zeroPoint=[zero_point])
    return serialize(raw)


def with_options(data: bytes, blob: bytes | None) -> bytes:
    raw = parse_model(data).raw
    raw.subgraphs[0].operators[0].customOptions = None if blob is None else np.frombuffer(blob, np.uint8)
    return serialize(raw)


def flexbuffer(**values: int) -> bytes:
    from flatbuffers import flexbuffers

    builder = flexbuffers.Builder()
    with builder.Map():
        for key, value in values.items():
            builder.Int(key, value)
    return bytes(builder.Finish())
