"""The ``bnnedge`` ONNX operators, version 1, and the model-local functions that define them.

Packed operators work on signs in NHWC. ``P`` is uint8 [N, H, W, 4 * words], the bytes of the little-endian 32-bit words
of ``kernels/layout.py``; ``words = ceil(C / 32)``.

- ``PackSigns(X, limit) -> P``: X float32 [N, H, W, C]; -1 where ``x < limit``, else +1 (so NaN is +1); limit is
  float32, one number, [C] or [N, 1, 1, 1].
- ``PackedConv2d(P, W, multiplier, bias) -> Y``: ``y = s * multiplier + bias``, float32 [N, OH, OW, O], where s is the
  convolution of the signs with the weights, an exact integer; zero padding adds 0 to it. The name goes on with the
  steps that follow, in this order, each of which rounds by itself; inputs are in the order of the steps:
  ``Add`` (input residual, shaped as Y): ``y = y + residual``; ``PRelu`` (inputs slope, offset):
  ``y = (slope * y if y < 0 else y) + offset``; ``Clip`` (attributes ``low``, ``high``): ``y = min(max(y, low), high)``;
  ``Sign`` (input limit, output P besides Y): -1 where ``y < limit``, else +1.
- ``PackedConv2dThreshold(P, W, threshold) -> P``: -1 where ``s < threshold``, else +1.
- ``PackedMaxPool2d(P) -> P``: maximum over windows; outside pixels never win. Attributes ``kernel_shape``, ``strides``,
  ``pads``.

``multiplier`` and ``bias`` are float32 [O], ``slope``, ``offset`` and ``limit`` too, or one number; ``threshold`` is
int32 [O]. Where the channels of a group do not fill whole words, there are operators on float images in NCHW:
``BinaryConv2d(X, W, multiplier, bias) -> Y`` and ``BinaryConv2dThreshold(X, W, threshold) -> Y``, X float32
[N, C, H, W] of which only the signs are used, Y float32 [N, O, OH, OW], with a threshold -1.0 or +1.0.

All convolutions have W uint8 [O, kh, kw, 4 * words] with the channels of one group along the last axis, the attributes
``strides``, ``pads``, ``dilations``, ``group`` of ONNX ``Conv``, and ``channels = [C / group]``.

``QuantizedConv2d(X, x_scale, x_zero_point, W, w_scale, y_scale, y_zero_point, bias, lowest) -> Y`` is an int8 stem: X
float32 [N, C, H, W], Y float32 [N, OH, OW, O]. Its steps round as ONNX Runtime's operators do: ``QuantizeLinear`` of X;
``QLinearConv`` with W int8 [O, C, kh, kw], w_scale float32 [O], bias int32 [O], attributes
``strides`` and ``pads``, pads below the kernel; no intermediate sum saturates, and its float32 product with
``x_scale * w_scale / y_scale`` is rounded, halves to even; ``DequantizeLinear``; addition of lowest, float32 [O].
Zero points are uint8. ``SpaceToDepth`` before its name folds X 2x2 first; ``MaxPool`` after it takes maxima of the
codes (attributes ``pool_shape``, ``pool_strides``, ``pool_pads``, pads below the kernel), ``Sign`` is as above.

A runtime with the bnnedge kernels runs these nodes itself. Any other runtime inlines the function, whose body is
standard operators only; constant folding then leaves float ``Conv`` nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper, numpy_helper

from bnnedge.kernels.layout import pack_filter

DOMAIN = "bnnedge"
DOMAIN_VERSION = 1
OPSET = 18
BINARY_CONV = "BinaryConv2d"
BINARY_CONV_THRESHOLD = "BinaryConv2dThreshold"
PACK_SIGNS = "PackSigns"
PACKED_CONV = "PackedConv2d"
PACKED_CONV_THRESHOLD = "PackedConv2dThreshold"
PACKED_MAX_POOL = "PackedMaxPool2d"
SPACE_TO_DEPTH, QUANTIZED_CONV, MAX_POOL, SIGN = "SpaceToDepth", "QuantizedConv2d", "MaxPool", "Sign"
STEPS = {"Add": ("residual",), "PRelu": ("slope", "offset"), "Clip": (), "Sign": ("limit",)}
"""What may follow a ``PackedConv2d``, in this order, with the inputs that it adds."""

_CONV_ATTRIBUTES = {
    "strides": AttributeProto.INTS,
    "pads": AttributeProto.INTS,
    "dilations": AttributeProto.INTS,
    "group": AttributeProto.INT,
}
_POOL_ATTRIBUTES = {name: AttributeProto.INTS for name in ("kernel_shape", "strides", "pads")}
_STEM_ATTRIBUTES = {"strides": AttributeProto.INTS, "pads": AttributeProto.INTS}
_STEM_POOL_ATTRIBUTES = {f"pool_{name}": AttributeProto.INTS for name in ("shape", "strides", "pads")}
_CLIP_ATTRIBUTES = {"low": AttributeProto.FLOAT, "high": AttributeProto.FLOAT}
_ATTRIBUTES = {**_CONV_ATTRIBUTES, "channels": AttributeProto.INTS}
_ALL_ATTRIBUTES = {**_ATTRIBUTES, **_POOL_ATTRIBUTES, **_CLIP_ATTRIBUTES, **_STEM_POOL_ATTRIBUTES}


def pack_weight(weight: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Weights {-1, +1} OIHW [O, I/groups, kh, kw] as the operator's W, uint8 [O, kh, kw, 4 * words]."""
    return np.ascontiguousarray(pack_filter(weight).astype("<u4")).view(np.uint8)


def packed_conv(steps: Iterable[str]) -> str:
    """The operator for a packed convolution followed by some of ``STEPS``."""
    chosen = set(steps)
    return PACKED_CONV + "".join(step for step in STEPS if step in chosen)


def quantized_conv(folds: bool, pools: bool, signs: bool) -> str:
    """The operator for an int8 stem."""
    return SPACE_TO_DEPTH * folds + QUANTIZED_CONV + MAX_POOL * pools + SIGN * signs


def is_stem(op_type: str) -> bool:
    """Whether an operator of the domain is an int8 stem."""
    return QUANTIZED_CONV in op_type


def is_convolution(op_type: str) -> bool:
    """Whether an operator of the domain is a binary convolution: its second input is W."""
    return op_type not in (PACK_SIGNS, PACKED_MAX_POOL) and not is_stem(op_type)


def is_packed(op_type: str) -> bool:
    """Whether an operator of the domain reads or writes packed signs, in NHWC."""
    return op_type not in (BINARY_CONV, BINARY_CONV_THRESHOLD)


def function(op_type: str) -> FunctionProto:
    """The model-local function of one operator of the domain."""
    if op_type == PACK_SIGNS:
        return _function(op_type, ["X", "limit"], ["P"], _packed("X", "limit", "P"))
    if op_type == PACKED_MAX_POOL:
        return _function(op_type, ["P"], ["Q"], _max_pool(), _POOL_ATTRIBUTES)
    if op_type == BINARY_CONV:
        body = [*_signs(), *_sums("x"), *_scale()]
        return _function(op_type, ["X", "W", "multiplier", "bias"], ["Y"], body, _ATTRIBUTES)
    if op_type == BINARY_CONV_THRESHOLD:
        return _function(op_type, ["X", "W", "threshold"], ["Y"], [*_signs(), *_sums("x"), *_compare()], _ATTRIBUTES)
    if op_type == PACKED_CONV_THRESHOLD:
        cast = helper.make_node("Cast", ["threshold"], ["limit"], to=TensorProto.FLOAT)
        body = [*_sums_of_packed(), cast, *_packed("sums", "limit", "Q")]
        return _function(op_type, ["P", "W", "threshold"], ["Q"], body, _ATTRIBUTES)
    if is_stem(op_type):
        return _stem(op_type)
    steps = [step for step in STEPS if step in op_type]
    if packed_conv(steps) != op_type:
        raise KeyError(op_type)
    inputs = ["P", "W", "multiplier", "bias", *(name for step in steps for name in STEPS[step])]
    outputs = ["Y", "Q"] if "Sign" in steps else ["Y"]
    attributes = {**_ATTRIBUTES, **(_CLIP_ATTRIBUTES if "Clip" in steps else {})}
    return _function(op_type, inputs, outputs, [*_sums_of_packed(), *_scale_and(steps)], attributes)


def _function(
    op_type: str, inputs: list[str], outputs: list[str], body: list[NodeProto], attributes: Iterable[str] = ()
) -> FunctionProto:
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, op_type, inputs, outputs, body, opsets, list(attributes))


def _signs() -> list[NodeProto]:
    return [
        _constant("zero", value_float=0.0),
        _constant("minus", value_float=-1.0),
        _constant("plus", value_float=1.0),
        helper.make_node("Less", ["X", "zero"], ["negative"]),
        helper.make_node("Where", ["negative", "minus", "plus"], ["x"]),
    ]


def _table() -> list[NodeProto]:
    """``table`` int8 [256, 8]: byte -> its eight signs, and the constants that unpacking needs."""
    # The table is computed, since a stored one would stand in every function of the file.
    return [
        _constant("first_byte", value_int=0),
        _constant("end_byte", value_int=256),
        _constant("one", value_int=1),
        _constant("two", value_int=2),
        _constant("powers", value_ints=[1 << bit for bit in range(8)]),
        helper.make_node("Range", ["first_byte", "end_byte", "one"], ["bytes"]),
        helper.make_node("Unsqueeze", ["bytes", "column"], ["byte_column"]),
        helper.make_node("Div", ["byte_column", "powers"], ["shifted"]),
        helper.make_node("Mod", ["shifted", "two"], ["table_bits"]),
        helper.make_node("Mul", ["table_bits", "two"], ["doubled"]),
        helper.make_node("Sub", ["one", "doubled"], ["table_signs"]),
        helper.make_node("Cast", ["table_signs"], ["table"], to=TensorProto.INT8),
        _constant("last_times_8", value_ints=[0, 0, 0, 8]),
        _constant("first", value_ints=[0]),
        _constant("axis", value_ints=[3]),
    ]


def _unpacked(packed: str, channels: str, output: str) -> list[NodeProto]:
    """``output`` float32 [N, channels, H, W] in {-1, +1} of ``packed`` [N, H, W, bytes], after ``_table``."""
    # The signs stay one byte each until the last step: that is less to move, and for weights loading stays cheap.
    steps = {name: f"{output}_{name}" for name in ("index", "octets", "bytes", "shape", "padded", "nhwc", "nchw")}
    return [
        helper.make_node("Cast", [packed], [steps["index"]], to=TensorProto.INT32),
        helper.make_node("Gather", ["table", steps["index"]], [steps["octets"]], axis=0),  # [N, H, W, bytes, 8]
        # The sizes are computed, as -1 is not allowed where the batch is empty; 0 keeps a size.
        helper.make_node("Shape", [packed], [steps["bytes"]], start=3, end=4),
        helper.make_node("Mul", [steps["bytes"], "last_times_8"], [steps["shape"]]),
        helper.make_node("Reshape", [steps["octets"], steps["shape"]], [steps["padded"]]),  # [N, H, W, 8 * bytes]
        helper.make_node("Slice", [steps["padded"], "first", channels, "axis"], [steps["nhwc"]]),
        helper.make_node("Transpose", [steps["nhwc"]], [steps["nchw"]], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", [steps["nchw"]], [output], to=TensorProto.FLOAT),
    ]


def _packed(values: str, limit: str, output: str) -> list[NodeProto]:
    """``output`` uint8 [N, H, W, 4 * words]: bit 1 where ``values`` [N, H, W, C] is below ``limit``."""
    return [
        helper.make_node("Less", [values, limit], ["below"]),
        helper.make_node("Cast", ["below"], ["bits"], to=TensorProto.FLOAT),
        helper.make_node("Shape", [values], ["count"], start=3, end=4),
        helper.make_node("Neg", ["count"], ["minus_count"]),
        _constant("word", value_ints=[32]),
        helper.make_node("Mod", ["minus_count", "word"], ["spare"]),  # up to the next multiple of 32
        _constant("none", value_ints=[0] * 7),
        helper.make_node("Concat", ["none", "spare"], ["spare_pads"], axis=0),
        helper.make_node("Pad", ["bits", "spare_pads"], ["all_bits"]),
        helper.make_node("Add", ["count", "spare"], ["all_count"]),
        _constant("bits_of_byte", value_ints=[8]),
        helper.make_node("Div", ["all_count", "bits_of_byte"], ["byte_count"]),
        # The shape is not built by Concat: ONNX Runtime would put -1 for an unknown size, see _unpacked.
        _constant("byte_place", value_ints=[0, 0, 0, 1, 0]),
        _constant("bit_place", value_ints=[0, 0, 0, 0, 8]),
        helper.make_node("Mul", ["byte_place", "byte_count"], ["byte_shape"]),
        helper.make_node("Add", ["byte_shape", "bit_place"], ["by_byte"]),
        helper.make_node("Reshape", ["all_bits", "by_byte"], ["bit_bytes"]),
        # The second operand is a matrix of one column; with a vector ONNX Runtime multiplies row by row.
        _constant("bit_values", value=numpy_helper.from_array(2 ** np.arange(8, dtype=np.float32)[:, None])),
        helper.make_node("MatMul", ["bit_bytes", "bit_values"], ["byte_values"]),
        _constant("last_axis", value_ints=[4]),
        helper.make_node("Squeeze", ["byte_values", "last_axis"], ["bytes_by_pixel"]),
        helper.make_node("Cast", ["bytes_by_pixel"], [output], to=TensorProto.UINT8),
    ]


def _max_pool() -> list[NodeProto]:
    bits_end = _constant("all", value_ints=[np.iinfo(np.int64).max])
    pool = _with_references(helper.make_node("MaxPool", ["x"], ["pooled"]), list(_POOL_ATTRIBUTES))
    return [
        _constant("column", value_ints=[1]),
        *_table(),
        bits_end,
        *_unpacked("P", "all", "x"),
        pool,
        helper.make_node("Transpose", ["pooled"], ["pooled_nhwc"], perm=[0, 2, 3, 1]),
        _constant("limit", value_float=0.0),
        *_packed("pooled_nhwc", "limit", "Q"),
    ]


def _sums(signs: str) -> list[NodeProto]:
    """``s`` float32 [N, O, OH, OW]: ``signs`` [N, C, H, W] convolved with W."""
    # Float sums of +-1 are exact up to 2**24 terms.
    conv = helper.make_node("Conv", [signs, "w"], ["s"])
    return [
        _constant("column", value_ints=[1]),
        *_table(),
        _reference(helper.make_node("Constant", [], ["last"]), "value_ints", "channels"),
        *_unpacked("W", "last", "w"),
        _with_references(conv, list(_CONV_ATTRIBUTES)),
    ]


def _sums_of_packed() -> list[NodeProto]:
    """``sums`` float32 [N, OH, OW, O]: the signs in P convolved with W."""
    *weight, conv = _sums("x")
    return [
        *weight,
        _reference(helper.make_node("Constant", [], ["groups"]), "value_int", "group"),
        helper.make_node("Mul", ["last", "groups"], ["all_channels"]),
        *_unpacked("P", "all_channels", "x"),
        conv,
        helper.make_node("Transpose", ["s"], ["sums"], perm=[0, 2, 3, 1]),
    ]


def _scale() -> list[NodeProto]:
    # ``multiplier`` comes first: ONNX Runtime fuses ``Conv -> Mul(s, constant)`` into the weights, and then sums of
    # rounded products are no longer exact: a sum of 0 comes out as some tiny number of either sign.
    return [
        _constant("axes", value_ints=[1, 2]),
        helper.make_node("Unsqueeze", ["multiplier", "axes"], ["m"]),
        helper.make_node("Unsqueeze", ["bias", "axes"], ["b"]),
        helper.make_node("Mul", ["m", "s"], ["scaled"]),
        helper.make_node("Add", ["scaled", "b"], ["Y"]),
    ]


def _compare() -> list[NodeProto]:
    return [
        _constant("axes", value_ints=[1, 2]),
        helper.make_node("Cast", ["threshold"], ["limit"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["limit", "axes"], ["t"]),
        helper.make_node("Less", ["s", "t"], ["below"]),
        helper.make_node("Where", ["below", "minus", "plus"], ["Y"]),
    ]


def _scale_and(steps: list[str]) -> list[NodeProto]:
    """The nodes that compute Y, the scaled ``sums`` after ``steps``, and with the step ``Sign`` also Q."""
    makers: dict[str, Callable[[str, str], list[NodeProto]]] = {
        "Add": lambda y, to: [helper.make_node("Add", [y, "residual"], [to])],
        "PRelu": lambda y, to: [
            helper.make_node("PRelu", [y, "slope"], ["bent"]),
            helper.make_node("Add", ["bent", "offset"], [to]),
        ],
        "Clip": lambda y, to: [
            _reference(helper.make_node("Constant", [], ["low_bound"]), "value_float", "low"),
            _reference(helper.make_node("Constant", [], ["high_bound"]), "value_float", "high"),
            helper.make_node("Clip", [y, "low_bound", "high_bound"], [to]),
        ],
    }
    floats = [step for step in steps if step in makers]
    values = ["biased", *(f"after_{step}" for step in floats)]
    values[-1] = "Y"
    nodes = [
        helper.make_node(
            "Mul", ["multiplier", "sums"], ["scaled"]
        ),  # the multiplier comes first for the reason given in _scale
        helper.make_node("Add", ["scaled", "bias"], [values[0]]),
    ]
    for step, before, after in zip(floats, values, values[1:], strict=False):
        nodes += makers[step](before, after)
    return nodes + (_packed("Y", "limit", "Q") if "Sign" in steps else [])


CODES_SUFFIX = "Codes"
UNSIGNED_ZERO = 128
"""What is added to signed 8-bit codes and weights where they are stored as unsigned bytes."""


def with_codes(stem: FunctionProto) -> FunctionProto:
    """The first part of a stem's function under another name; its one output is the codes of the image, uint8 NCHW."""
    quantizing = [node for node in stem.node if node.op_type in (SPACE_TO_DEPTH, "QuantizeLinear")]
    return _function(stem.name + CODES_SUFFIX, list(stem.input), ["entered"], quantizing, list(stem.attribute))


def _stem(op_type: str) -> FunctionProto:
    folds, pools, signs = op_type.startswith(SPACE_TO_DEPTH), MAX_POOL in op_type, op_type.endswith(SIGN)
    if quantized_conv(folds, pools, signs) != op_type:
        raise KeyError(op_type)
    parameters = ["x_scale", "x_zero_point", "W", "w_scale", "y_scale", "y_zero_point", "bias", "lowest"]
    operands = ["x_scale", "x_zero_point", "unsigned", "w_scale", "w_zero_point", "y_scale", "y_zero_point", "bias"]
    image = "folded" if folds else "X"
    conv = helper.make_node("QLinearConv", ["entered", *operands], ["convolved"])
    body = [
        helper.make_node("QuantizeLinear", [image, "x_scale", "x_zero_point"], ["entered"]),
        # The weights are unsigned: with signed ones ONNX Runtime's kernels for x86 without VNNI saturate at 16 bits.
        _constant("w_zero_point", value=numpy_helper.from_array(np.array(UNSIGNED_ZERO, np.uint8))),
        _constant("middle", value=numpy_helper.from_array(np.array(UNSIGNED_ZERO, np.int32))),
        helper.make_node("Cast", ["W"], ["wide"], to=TensorProto.INT32),
        helper.make_node("Add", ["wide", "middle"], ["shifted"]),
        helper.make_node("Cast", ["shifted"], ["unsigned"], to=TensorProto.UINT8),
        _with_references(conv, _STEM_ATTRIBUTES),
    ]
    if folds:
        body.insert(0, helper.make_node("SpaceToDepth", ["X"], ["folded"], blocksize=2))
    if pools:
        pool = helper.make_node("MaxPool", ["convolved"], ["pooled"])
        for name in _POOL_ATTRIBUTES:
            _reference(pool, name, f"pool_{name.removeprefix('kernel_')}")
        body.append(pool)
    body += [
        helper.make_node("Transpose", ["pooled" if pools else "convolved"], ["left"], perm=[0, 2, 3, 1]),
        helper.make_node("DequantizeLinear", ["left", "y_scale", "y_zero_point"], ["values"]),
        helper.make_node("Add", ["values", "lowest"], ["Y"]),
        *(_packed("Y", "limit", "Q") if signs else []),
    ]
    inputs = ["X", *parameters, *(["limit"] if signs else [])]
    attributes = {**_STEM_ATTRIBUTES, **(_STEM_POOL_ATTRIBUTES if pools else {})}
    return _function(op_type, inputs, ["Y", "Q"] if signs else ["Y"], body, attributes)


def _constant(output: str, **value: Any) -> NodeProto:
    return helper.make_node("Constant", [], [output], **value)


def _reference(node: NodeProto, name: str, caller_name: str) -> NodeProto:
    """``node`` with attribute ``name`` taken from the calling node's attribute ``caller_name``."""
    kind = _ALL_ATTRIBUTES[caller_name]
    node.attribute.append(AttributeProto(name=name, ref_attr_name=caller_name, type=kind))
    return node


def _with_references(node: NodeProto, names: Iterable[str]) -> NodeProto:
    for name in names:
        _reference(node, name, name)
    return node
