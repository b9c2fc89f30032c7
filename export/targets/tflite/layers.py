"""The layers of a TFLite file: the rows of its table, and its binary convolutions with their geometry."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ConfigError, ExportError, one_line, printable
from bnnedge.export.graph import Pair
from bnnedge.export.targets.target import LayerRow
from bnnedge.export.targets.tflite.reader import MALFORMED, Model, Operator, channels_first
from bnnedge.export.targets.tflite.writer import ABSENT
from bnnedge.export.window import Window
from bnnedge.kernels.layout import unpack, words_for

ROLES = ("weight", "multiplier", "bias", "threshold", "slope", "padding_correction")
"""The parameters of layer L are the constants ``L/<role>``."""


def describe_model(model: Model) -> list[LayerRow]:
    """One row a layer: operators whose parameters have the same ``<layer>/`` in front of their role are one layer."""
    rows: dict[str, LayerRow] = {}
    reasons = model.reasons()
    try:
        for op in model.operators:
            row = _row(model, op)
            if row is None:
                continue
            before = rows.get(row.name)
            rows[row.name] = _joined(before, row) if before else replace(row, reason=str(reasons.get(row.name, "")))
    except (*MALFORMED, ConfigError) as error:
        raise ExportError(
            f"the TFLite file has operators at odds with their tensors: {printable(one_line(error))}"
        ) from error
    return [replace(row, name=printable(row.name), reason=printable(row.reason)) for row in rows.values()]


def _row(model: Model, op: Operator) -> LayerRow | None:
    parameters = [i for i in op.inputs if model.bytes_of(i)]
    named = [i for i in parameters if model.name(i).rpartition("/")[2] in ROLES]
    if op.code == "GATHER":
        parameters = named
    if op.code not in _KINDS or not parameters:
        return None
    output_shape = channels_first(model.shape(op.outputs[0]))
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
    # An int8 layer has two float parameters a channel: the scale of its weights, which is no tensor, and the bias.
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


def _input_shape(model: Model, op: Operator) -> tuple[int, ...]:
    source = next(i for i in op.inputs if i != ABSENT and (not model.bytes_of(i) or op.code == "GATHER"))
    shape = channels_first(model.shape(_unpadded(model, source)[0]))
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
    """The packed tensor that the layer reads, before any padding."""
    channels: int
    weight: NDArray[np.int8]
    """Values -1 and +1 of shape [O, I/groups, kh, kw]."""
    stride: Pair
    dilation: Pair
    groups: int
    padding: Pair = (0, 0)
    in_float: bool = False
    """Whether the layer runs as a float convolution of the signs."""
    is_torch: bool = True
    """Whether ``padding`` zeros on both sides give the windows of the file. SAME of another writer may have others."""


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
        except (*MALFORMED, ConfigError) as error:
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
