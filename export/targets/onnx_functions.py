"""The ``bnnedge`` ONNX operators, version 1: their packed weights and the model-local functions that define them.

``BinaryConv2d(X, W, multiplier, bias) -> Y`` and ``BinaryConv2dThreshold(X, W, threshold) -> Y`` with

- X: float32 [N, C, H, W]; only its signs are used, -1 where ``x < 0``, else +1 (so 0, -0.0 and NaN are +1),
- W: uint8 [O, kh, kw, 4 * words], the bytes of the little-endian 32-bit words of ``kernels/layout.py`` with the
  channels of one group along the last axis, ``words = ceil(C / group / 32)``,
- multiplier, bias: float32 [O]; ``Y = s * multiplier + bias``, float32 [N, O, OH, OW],
- threshold: int32 [O]; Y is -1.0 where ``s < threshold``, else +1.0,
- attributes ``strides``, ``pads``, ``dilations``, ``group`` as in ONNX ``Conv``, and ``channels = [C / group]``,

where ``s`` is the convolution of the signs with the weights, an exact integer; zero padding adds 0 to it.

A runtime with the bnnedge kernels runs these nodes itself. Any other runtime inlines the function, whose body is
standard operators only; constant folding then leaves a float ``Conv``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper, numpy_helper

from bnnedge.kernels.layout import pack

DOMAIN = "bnnedge"
DOMAIN_VERSION = 1
OPSET = 18
BINARY_CONV = "BinaryConv2d"
BINARY_CONV_THRESHOLD = "BinaryConv2dThreshold"

_CONV_ATTRIBUTES = {
    "strides": AttributeProto.INTS,
    "pads": AttributeProto.INTS,
    "dilations": AttributeProto.INTS,
    "group": AttributeProto.INT,
}
_ATTRIBUTES = {**_CONV_ATTRIBUTES, "channels": AttributeProto.INTS}


def pack_weight(weight: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Weights {-1, +1} OIHW [O, I/groups, kh, kw] as the operator's W, uint8 [O, kh, kw, 4 * words]."""
    words = pack(np.ascontiguousarray(weight.transpose(0, 2, 3, 1)))
    return np.ascontiguousarray(words.astype("<u4")).view(np.uint8)


def function(op_type: str) -> FunctionProto:
    """The model-local function of one operator of the domain."""
    inputs, tail = {
        BINARY_CONV: (["X", "W", "multiplier", "bias"], _scale),
        BINARY_CONV_THRESHOLD: (["X", "W", "threshold"], _compare),
    }[op_type]
    return helper.make_function(
        DOMAIN,
        op_type,
        inputs,
        ["Y"],
        [*_signs(), *_unpacked_weight(), _convolution(), *tail()],
        [helper.make_opsetid("", OPSET)],
        list(_ATTRIBUTES),
    )


def _signs() -> list[NodeProto]:
    return [
        _constant("zero", value_float=0.0),
        _constant("minus", value_float=-1.0),
        _constant("plus", value_float=1.0),
        helper.make_node("Less", ["X", "zero"], ["negative"]),
        helper.make_node("Where", ["negative", "minus", "plus"], ["x"]),
    ]


def _unpacked_weight() -> list[NodeProto]:
    # The weights stay one byte each until the last step, which keeps loading cheap while a runtime folds this.
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    table = numpy_helper.from_array(1 - 2 * bits.astype(np.int8))  # [256, 8], byte -> its eight weights
    return [
        _constant("table", value=table),
        _constant("flat", value_ints=[0, 0, 0, -1]),
        _constant("first", value_ints=[0]),
        _constant("axis", value_ints=[3]),
        helper.make_node("Cast", ["W"], ["index"], to=TensorProto.INT32),
        helper.make_node("Gather", ["table", "index"], ["octets"], axis=0),  # [O, kh, kw, 4 * words, 8]
        helper.make_node("Reshape", ["octets", "flat"], ["padded"]),  # [O, kh, kw, 32 * words]
        _with_references(helper.make_node("Constant", [], ["last"]), {"value_ints": "channels"}),
        helper.make_node("Slice", ["padded", "first", "last", "axis"], ["ohwi"]),
        helper.make_node("Transpose", ["ohwi"], ["oihw"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["oihw"], ["w"], to=TensorProto.FLOAT),
    ]


def _convolution() -> NodeProto:
    # Float sums of +-1 are exact up to 2**24 terms.
    node = helper.make_node("Conv", ["x", "w"], ["s"])
    return _with_references(node, {name: name for name in _CONV_ATTRIBUTES})


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


def _constant(output: str, **value: Any) -> NodeProto:
    return helper.make_node("Constant", [], [output], **value)


def _with_references(node: NodeProto, references: dict[str, str]) -> NodeProto:
    """``node`` with attributes that take their values from the calling node's attributes (name -> caller's name)."""
    for name, caller_name in references.items():
        attribute = onnx.AttributeProto(name=name, ref_attr_name=caller_name, type=_ATTRIBUTES[caller_name])
        node.attribute.append(attribute)
    return node
