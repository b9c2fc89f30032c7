"""How each node is written in ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnnedge.export import graph as g
from bnnedge.export.passes.fuse_block import packs
from bnnedge.export.targets.forms import Forms
from bnnedge.export.targets.onnx import functions
from bnnedge.export.targets.onnx.reader import NHWC_SUFFIX, SCALE_SUFFIX
from bnnedge.export.targets.onnx.writer import SUFFIX, Form, OnnxWriter

FORMS = Forms[OnnxWriter]("onnx")
_END = np.iinfo(np.int64).max


def _window(node: g.Conv2d | g.BinaryConv2d) -> dict[str, Any]:
    return {
        "strides": list(node.stride),
        "pads": [*node.padding, *node.padding],
        "dilations": list(node.dilation),
        "group": node.groups,
    }


@FORMS.register(g.Conv2d)
def _conv2d(node: g.Conv2d, out: OnnxWriter) -> None:
    pointwise = node.weight.shape[2:] == (1, 1) and node.groups == 1 and node.padding == (0, 0)
    if pointwise and out.layout(node) == "nhwc":
        _write_pointwise(node, out)
        return
    weight = out.parameter(node, "weight", node.weight)
    bias = out.parameter(node, "bias", node.bias)
    out.add("Conv", node, [node.inputs[0], weight, bias], doc_string=node.reason, **_window(node))


def _write_pointwise(node: g.Conv2d, out: OnnxWriter) -> None:
    """Write a 1x1 convolution in NHWC, as a matrix product."""
    x = out.read(node.inputs[0], "nhwc")
    if node.stride != (1, 1):
        name = f"{node.name}/subsample"
        x = out.add("Slice", node, [x, *_every(node.stride, "nhwc", out)], name=name, output=name + NHWC_SUFFIX)
    weight = out.parameter(node, "weight", np.ascontiguousarray(node.weight[:, :, 0, 0].T))
    if not node.bias.any():
        out.add("MatMul", node, [x, weight], form="nhwc", doc_string=node.reason)
        return
    bias = out.parameter(node, "bias", node.bias)
    name = node.name + SCALE_SUFFIX
    product = out.add("MatMul", node, [x, weight], name=name, output=name + NHWC_SUFFIX, doc_string=node.reason)
    out.add("Add", node, [product, bias], form="nhwc", doc_string=node.reason)


@FORMS.register(g.SpaceToDepth)
def _space_to_depth(node: g.SpaceToDepth, out: OnnxWriter) -> None:
    out.add("SpaceToDepth", node, node.inputs, blocksize=2)


@FORMS.register(g.Quantize)
def _quantize(node: g.Quantize, out: OnnxWriter) -> None:
    out.add("QuantizeLinear", node, [node.inputs[0], *out.quantization(out.graph.tensors[node.output].quantization)])


@FORMS.register(g.Dequantize)
def _dequantize(node: g.Dequantize, out: OnnxWriter) -> None:
    quantization = out.graph.tensors[node.inputs[0]].quantization
    out.add("DequantizeLinear", node, [node.inputs[0], *out.quantization(quantization)])


@FORMS.register(g.QuantizedConv2d)
def _quantized_conv2d(node: g.QuantizedConv2d, out: OnnxWriter) -> None:
    zero = functions.UNSIGNED_ZERO  # unsigned for the reason given in the function of a stem
    weight = [
        out.parameter(node, "weight", (node.weight.astype(np.int32) + zero).astype(np.uint8)),
        out.parameter(node, "weight_scale", node.weight_scale),
        out.shared("weight_zero_point", zero, np.uint8),
    ]
    tensors = out.graph.tensors
    source, target = (out.quantization(tensors[name].quantization) for name in (node.inputs[0], node.output))
    inputs = [node.inputs[0], *source, *weight, *target, out.parameter(node, "bias", node.bias)]
    out.add("QLinearConv", node, inputs, doc_string=node.reason, strides=list(node.stride), pads=_pads(node))


def _pads(node: g.QuantizedConv2d) -> list[int]:
    (top, bottom), (left, right) = node.edges
    return [top, left, bottom, right]


@FORMS.register(g.Stem)
def _stem(node: g.Stem, out: OnnxWriter) -> None:
    conv, pool = node.conv, node.pool
    attributes: dict[str, Any] = {"strides": list(conv.stride), "pads": _pads(conv)}
    if pool is not None:
        pads = [*pool.padding, *pool.padding]
        attributes |= {"pool_shape": list(pool.kernel), "pool_strides": list(pool.stride), "pool_pads": pads}
    inputs = [
        out.read(node.inputs[0], "plain"),
        *out.quantization(node.source),
        out.parameter(node, "weight", conv.weight),
        out.parameter(node, "weight_scale", conv.weight_scale),
        *out.quantization(node.target),
        out.parameter(node, "bias", conv.bias),
        out.parameter(node, "lowest", np.zeros(len(conv.bias)) if node.lowest is None else node.lowest),
    ]
    outputs: list[tuple[str, Form]] = [(node.output, "nhwc")]
    if node.signs is not None:
        inputs.append(out.scalar(0.0) if node.limit is None else out.parameter(node, "limit", node.limit))
        outputs.append((node.signs, "bits"))
    op_type = functions.quantized_conv(node.folds, pool is not None, node.signs is not None)
    out.add_packed(op_type, node.name, inputs, outputs, doc_string=conv.reason, **attributes)


@FORMS.register(g.Linear)
def _linear(node: g.Linear, out: OnnxWriter) -> None:
    weight = out.parameter(node, "weight", node.weight)
    bias = out.parameter(node, "bias", node.bias)
    out.add("Gemm", node, [node.inputs[0], weight, bias], doc_string=node.reason, transB=1)


def _packed_weight(node: g.BinaryConv2d, out: OnnxWriter) -> str:
    return out.parameter(node, "weight", functions.pack_weight(node.weight))


def _scale(node: g.BinaryConv2d, out: OnnxWriter) -> list[str]:
    return [out.parameter(node, "multiplier", node.multiplier), out.parameter(node, "bias", node.bias)]


@FORMS.register(g.BinaryConv2d)
def _binary_conv2d(node: g.BinaryConv2d, out: OnnxWriter) -> None:
    weight = _packed_weight(node, out)
    attributes = {"channels": [node.weight.shape[1]], **_window(node)}
    if node.threshold is None:
        inputs = [out.read(node.inputs[0], "plain"), weight, *_scale(node, out)]
        out.add_packed(functions.BINARY_CONV, node.name, inputs, [(node.output, "plain")], **attributes)
        return
    threshold = out.parameter(node, "threshold", node.threshold.astype(np.int32))
    form: Form = "bits" if packs(node) else "plain"
    op_type = functions.PACKED_CONV_THRESHOLD if packs(node) else functions.BINARY_CONV_THRESHOLD
    inputs = [out.read(node.inputs[0], form), weight, threshold]
    out.add_packed(op_type, node.name, inputs, [(node.output, form)], **attributes)


@FORMS.register(g.Block)
def _block(node: g.Block, out: OnnxWriter) -> None:
    steps = []
    attributes = {"channels": [node.conv.weight.shape[1]], **_window(node.conv)}
    inputs = [out.read(node.inputs[0], "bits"), _packed_weight(node.conv, out), *_scale(node.conv, out)]
    outputs: list[tuple[str, Form]] = [(node.output, "nhwc")]
    if len(node.inputs) == 2:
        steps.append("Add")
        inputs.append(out.read(node.inputs[1], "nhwc"))
    if node.slope is not None:
        steps.append("PRelu")
        inputs.append(out.parameter(node, "slope", node.slope))
        # Adding -0.0 changes nothing, not even a -0.0.
        inputs.append(out.scalar(-0.0) if node.offset is None else out.parameter(node, "offset", node.offset))
    if node.clips:
        steps.append("Clip")
        attributes |= {"low": node.low, "high": node.high}
    if node.signs is not None:
        steps.append("Sign")
        inputs.append(out.scalar(0.0) if node.limit is None else out.parameter(node, "limit", node.limit))
        outputs.append((node.signs, "bits"))
    out.add_packed(functions.packed_conv(steps), node.name, inputs, outputs, **attributes)


@FORMS.register(g.BinarizeBelow)
def _binarize_below(node: g.BinarizeBelow, out: OnnxWriter) -> None:
    x = out.read(node.inputs[0], "nhwc")
    limit = out.read(node.inputs[1], "nhwc") if node.limit is None else out.parameter(node, "limit", node.limit)
    out.add_packed(functions.PACK_SIGNS, node.name, [x, limit], [(node.output, "bits")])


@FORMS.register(g.Binarize)
def _binarize(node: g.Binarize, out: OnnxWriter) -> None:
    if not out.needs_real_bits(node.output):
        out.alias(node)
        return
    form = out.layout(node)
    inputs = [out.read(node.inputs[0], form), out.scalar(0.0)]
    negative = out.add("Less", node, inputs, name=f"{node.name}/negative", output=f"{node.output}/negative")
    out.add("Where", node, [negative, out.scalar(-1.0), out.scalar(1.0)], form=form)


@FORMS.register(g.Affine)
def _affine(node: g.Affine, out: OnnxWriter) -> None:
    form = out.layout(node)
    per_channel = (-1,) if form == "nhwc" else (-1, *[1] * (out.rank(node.output) - 2))
    source = out.read(node.inputs[0], form)
    scales, shifts = bool((node.multiplier != 1).any()), bool((node.bias != 0).any())
    if scales:
        multiplier = out.parameter(node, "multiplier", node.multiplier.reshape(per_channel))
        suffix = SCALE_SUFFIX if shifts else ""
        output = node.output + suffix + SUFFIX[form] if shifts else ""
        source = out.add("Mul", node, [source, multiplier], form=form, name=node.name + suffix, output=output)
    if shifts or not scales:
        out.add("Add", node, [source, out.parameter(node, "bias", node.bias.reshape(per_channel))], form=form)


@FORMS.register(g.Clip)
def _clip(node: g.Clip, out: OnnxWriter) -> None:
    form = out.layout(node)
    source = out.read(node.inputs[0], form)
    if (node.low, node.high) == (0, np.inf):
        out.add("Relu", node, [source], form=form)
        return
    bounds = [out.scalar(bound) if np.isfinite(bound) else "" for bound in (node.low, node.high)]
    out.add("Clip", node, [source, *bounds], form=form)


@FORMS.register(g.PRelu)
def _p_relu(node: g.PRelu, out: OnnxWriter) -> None:
    form = out.layout(node)
    slope = node.slope if form == "nhwc" else node.slope.reshape(-1, *[1] * (out.rank(node.output) - 2))
    out.add("PRelu", node, [out.read(node.inputs[0], form), out.parameter(node, "slope", slope)], form=form)


@FORMS.register(g.Activation)
def _activation(node: g.Activation, out: OnnxWriter) -> None:
    if node.kind == "softmax":
        out.add("Softmax", node, node.inputs, axis=-1)
        return
    form = out.layout(node)
    out.add({"sigmoid": "Sigmoid", "tanh": "Tanh"}[node.kind], node, [out.read(node.inputs[0], form)], form=form)


@FORMS.register(g.Add, g.Sub, g.Mul, g.Div, g.Sqrt)
def _elementwise(node: g.Node, out: OnnxWriter) -> None:
    form = out.layout(node)
    out.add(type(node).__name__, node, [out.read(tensor, form) for tensor in node.inputs], form=form)


@FORMS.register(g.Mean)
def _mean(node: g.Mean, out: OnnxWriter) -> None:
    x = node.inputs[0]
    if not out.has(x, "nhwc") or node.axes not in ((1, 2, 3), (2, 3)):
        out.add("ReduceMean", node, [x, out.shared("axes", node.axes, np.int64)], keepdims=int(node.keepdims))
        return
    # One axis is reduced, in the order of the memory, so that a runtime that moves transposes keeps the rounding.
    _, channels, height, width = out.graph.tensors[x].shape
    kept = () if node.axes == (1, 2, 3) else (channels,)
    shape = out.shared("shape", (0, -1, *kept), np.int64)
    name = f"{node.name}/rows"
    rows = out.add("Reshape", node, [out.read(x, "nhwc"), shape], name=name, output=name)
    name = f"{node.name}/mean"
    if kept:
        # A matrix product is faster: for one image of [49, 512] ONNX Runtime 1.32 took 14 us on Zen 3, its mean 60 us.
        weights = out.shared("weights", np.full((1, height * width), 1 / (height * width)), np.float32)
        mean = out.add("MatMul", node, [weights, rows], name=name, output=name)
    else:
        mean = out.add("ReduceMean", node, [rows, out.shared("axes", (1,), np.int64)], name=name, output=name)
    image = (0, 1, 1, *(kept or (1,))) if node.keepdims else (0, *kept)
    form: Form = "nhwc" if node.keepdims else "plain"
    out.add("Reshape", node, [mean, out.shared("shape", image, np.int64)], form=form)


@FORMS.register(g.MaxPool2d)
def _max_pool2d(node: g.MaxPool2d, out: OnnxWriter) -> None:
    source = node.inputs[0]
    pads = [*node.padding, *node.padding]
    attributes: dict[str, Any] = {"kernel_shape": list(node.kernel), "strides": list(node.stride), "pads": pads}
    if out.graph.tensors[source].dtype == "bits" and not out.needs_real_bits(node.output):
        inputs = [out.read(source, "bits")]
        out.add_packed(functions.PACKED_MAX_POOL, node.name, inputs, [(node.output, "bits")], **attributes)
    else:
        out.add("MaxPool", node, node.inputs, **attributes)


@FORMS.register(g.AvgPool2d)
def _avg_pool2d(node: g.AvgPool2d, out: OnnxWriter) -> None:
    out.add("AveragePool", node, node.inputs, kernel_shape=list(node.kernel), strides=list(node.stride))


@FORMS.register(g.Reshape)
def _reshape(node: g.Reshape, out: OnnxWriter) -> None:
    x = node.inputs[0]
    # An image of one pixel has its values in the same order in both forms. 0 keeps the batch dimension.
    single = out.graph.tensors[x].shape[2:] == (1, 1) and out.has(x, "nhwc")
    source = out.read(x, "nhwc" if single else "plain")
    pixel = len(node.shape) == 3 and node.shape[1:] == (1, 1)
    shape = (1, 1, node.shape[0]) if pixel else node.shape
    form: Form = "nhwc" if pixel else "plain"
    out.add("Reshape", node, [source, out.shared("shape", (0, *shape), np.int64)], form=form)


def _every(step: g.Pair, form: Form, out: OnnxWriter) -> list[str]:
    """The inputs of a ``Slice`` that takes every ``step``-th row and column."""
    axes = (1, 2) if form == "nhwc" else (2, 3)
    limits = [("starts", (0, 0)), ("ends", (_END, _END)), ("axes", axes), ("steps", step)]
    return [out.shared(role, value, np.int64) for role, value in limits]


@FORMS.register(g.Subsample)
def _subsample(node: g.Subsample, out: OnnxWriter) -> None:
    form = out.layout(node)
    out.add("Slice", node, [out.read(node.inputs[0], form), *_every(node.step, form, out)], form=form)


@FORMS.register(g.PadChannels)
def _pad_channels(node: g.PadChannels, out: OnnxWriter) -> None:
    form = out.layout(node)
    # All axes are given: ONNX Runtime up to 1.32 gets a Pad of some axes wrong when it moves a Transpose past it.
    pads = np.zeros((2, len(out.graph.tensors[node.output].shape)), np.int64)
    pads[:, 3 if form == "nhwc" else 1] = node.before, node.after
    out.add("Pad", node, [out.read(node.inputs[0], form), out.shared("pads", tuple(pads.ravel()), np.int64)], form=form)


@FORMS.register(g.Concat)
def _concat(node: g.Concat, out: OnnxWriter) -> None:
    form = out.layout(node)
    inputs = [out.read(tensor, form) for tensor in node.inputs]
    out.add("Concat", node, inputs, form=form, axis=3 if form == "nhwc" else 1)
