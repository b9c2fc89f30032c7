"""ONNX Runtime on the CPU: stock, with the binary operators inlined from the functions that the file carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bnnedge.errors import DataError, ExportError, MissingDependencyError
from bnnedge.export.graph import LOWEST_CODE
from bnnedge.export.runtimes.runtime import Images, Session, VerifyingRuntime
from bnnedge.export.targets.onnx import functions
from bnnedge.export.targets.onnx.reader import binary_nodes, input_channels, load_model
from bnnedge.kernels.layout import pack, unpack, words_for

_FATAL_ONLY = 4


class OnnxRuntimeSession(Session):
    """One ``InferenceSession``; its own layout is NCHW too."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._input = session.get_inputs()[0]
        self._output_names = [session.get_outputs()[0].name]

    def prepare(self, images: Images) -> Images:
        """Contiguous float32. Raises ``DataError`` unless the shape is the file's input shape."""
        expected = self._input.shape
        fits = len(expected) == images.ndim and all(
            not isinstance(size, int) or size == found for size, found in zip(expected, images.shape, strict=True)
        )
        if not fits:
            wanted = " x ".join(str(size) for size in expected)
            raise DataError(f"the ONNX file takes images {wanted}, found {' x '.join(map(str, images.shape))}")
        return np.ascontiguousarray(images, dtype=np.float32)

    def invoke(self, prepared: Images) -> NDArray[np.float32]:
        try:
            output: NDArray[np.float32] = self._session.run(self._output_names, {self._input.name: prepared})[0]
        except _errors() as error:
            reason = " ".join(str(error).split())[:300]
            raise ExportError(f"ONNX Runtime cannot run a batch of {len(prepared)}: {reason}") from error
        return output


class OnnxRuntime(VerifyingRuntime):
    """The ``onnxruntime`` package, CPU execution provider, 1.17 or newer."""

    name: ClassVar[str] = "onnxruntime"

    @classmethod
    def unavailable(cls) -> str | None:
        try:
            cls.version()
        except MissingDependencyError as error:
            return str(error)
        return None

    @classmethod
    def version(cls) -> str:
        return str(_onnxruntime().__version__)

    @classmethod
    def session_options(cls, threads: int) -> Any:
        """Options of every session that this runtime opens; a subclass registers operator libraries here."""
        options = _onnxruntime().SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        return options

    @classmethod
    def open(cls, data: bytes, threads: int = 1) -> OnnxRuntimeSession:
        return OnnxRuntimeSession(cls._inference_session(data, threads))

    @classmethod
    def tap(cls, data: bytes, images: Images) -> tuple[NDArray[np.float32], dict[str, NDArray[np.int8]]]:
        model = load_model(data)
        layers = binary_nodes(model)
        own = {info.name for info in (*model.graph.input, *model.graph.output)}
        for tensor, node in {node.input[0]: node for node in layers}.items():
            if tensor not in own:
                kind = TensorProto.UINT8 if functions.is_packed(node.op_type) else TensorProto.FLOAT
                model.graph.output.append(helper.make_tensor_value_info(tensor, kind, None))
        inference = cls._inference_session(model.SerializeToString(), threads=1)
        prepared = OnnxRuntimeSession(inference).prepare(images)
        input_name, names = model.graph.input[0].name, [info.name for info in model.graph.output]
        values = dict(zip(names, inference.run(names, {input_name: prepared}), strict=True))
        output: NDArray[np.float32] = values[names[0]]
        values[input_name] = prepared
        return output, {node.name: _signs(node, values[node.input[0]]) for node in layers}

    @classmethod
    def integers(cls, data: bytes, layer: str, signs: NDArray[np.int8]) -> NDArray[np.int32]:
        model, packed = _one_layer_model(load_model(data), layer)
        inference = cls._inference_session(model.SerializeToString(), threads=1)
        if packed:
            words = pack(np.ascontiguousarray(signs.transpose(0, 2, 3, 1)))
            nhwc = inference.run(None, {"signs": words.astype("<u4").view(np.uint8)})[0]
            sums = nhwc.transpose(0, 3, 1, 2)
        else:
            sums = inference.run(None, {"signs": signs.astype(np.float32)})[0]
        rounded: NDArray[np.int32] = np.rint(sums).astype(np.int32)
        if not np.array_equal(rounded, sums):
            raise ExportError(f"{layer}: the runtime's sums are not integers; its convolution is not exact")
        return rounded

    @classmethod
    def codes(cls, data: bytes, images: Images, tensors: Sequence[str]) -> list[NDArray[np.int8]]:
        model = load_model(data)
        stem = next((node for node in model.graph.node if functions.is_stem(node.op_type)), None)
        if stem is not None:
            return cls._codes_of_stem(model, stem, images)
        del model.graph.output[:]
        model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in tensors)
        inference = cls._inference_session(model.SerializeToString(), threads=1)
        prepared = OnnxRuntimeSession(inference).prepare(images)
        stored = inference.run(list(tensors), {model.graph.input[0].name: prepared})
        return [np.ascontiguousarray(codes.astype(np.int16) + LOWEST_CODE, np.int8) for codes in stored]

    @classmethod
    def _codes_of_stem(cls, model: ModelProto, stem: NodeProto, images: Images) -> list[NDArray[np.int8]]:
        """Of a stem in one node: those that leave it from its floats, those that enter from that part of its body."""
        function = next(f for f in model.functions if f.name == stem.op_type)
        model.functions.append(functions.with_codes(function))
        entered = NodeProto()
        entered.CopyFrom(stem)
        entered.op_type += functions.CODES_SUFFIX
        entered.name += functions.CODES_SUFFIX
        entered.output[:] = [f"{stem.name}/entered"]
        model.graph.node.append(entered)
        del model.graph.output[:]
        for name, kind in ((entered.output[0], TensorProto.UINT8), (stem.output[0], TensorProto.FLOAT)):
            model.graph.output.append(helper.make_tensor_value_info(name, kind, None))
        inference = cls._inference_session(model.SerializeToString(), threads=1)
        prepared = OnnxRuntimeSession(inference).prepare(images)
        codes, values = inference.run(None, {model.graph.input[0].name: prepared})
        left = _codes_of_values(values, *(_constant(model, stem.input[i]) for i in (5, 6, 8)))
        found = (codes, left.transpose(0, 3, 1, 2))
        return [np.ascontiguousarray(each.astype(np.int16) + LOWEST_CODE, np.int8) for each in found]

    @classmethod
    def _inference_session(cls, data: bytes, threads: int) -> Any:
        errors = _errors()
        try:
            return _onnxruntime().InferenceSession(
                data, cls.session_options(threads), providers=["CPUExecutionProvider"]
            )
        except errors as error:
            reason = " ".join(str(error).split())[:300]
            raise ExportError(f"ONNX Runtime {cls.version()} cannot load the file: {reason}") from error


def _constant(model: ModelProto, name: str) -> NDArray[Any]:
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def _codes_of_values(
    values: NDArray[np.float32], scale: NDArray[np.float32], zero_point: NDArray[np.uint8], lowest: NDArray[np.float32]
) -> NDArray[np.int16]:
    """The codes that a stem dequantized to exactly ``values``; lowest is [O], the last axis."""
    codes: NDArray[np.int16] = np.rint((values - lowest) / scale).astype(np.int16) + zero_point
    again = (codes.astype(np.float32) - zero_point) * scale + lowest
    if not np.array_equal(again, values):
        raise ExportError("the stem's floats are none of its codes")
    return codes


def _signs(node: NodeProto, values: NDArray[Any]) -> NDArray[np.int8]:
    """The signs that enter a binary convolution, int8 [N, C, H, W], from its first input in the file."""
    if not functions.is_packed(node.op_type):
        return np.where(values < 0, -1, 1).astype(np.int8)
    words = np.ascontiguousarray(values).view("<u4")
    return np.ascontiguousarray(unpack(words, input_channels(node)).transpose(0, 3, 1, 2))


def _one_layer_model(model: ModelProto, layer: str) -> tuple[ModelProto, bool]:
    """Binary convolution ``layer`` alone with the file's own weights, multiplier 1, bias 0 and nothing after that.

    And whether its input ``signs`` is packed.
    """
    layers = {node.name: node for node in binary_nodes(model)}
    if layer not in layers:
        raise ExportError(f"the ONNX file has no binary convolution {layer!r}; it has: {', '.join(layers) or 'none'}")
    original = layers[layer]
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == original.input[1])
    packed = functions.is_packed(original.op_type)
    op_type = functions.PACKED_CONV if packed else functions.BINARY_CONV
    node = helper.make_node(
        op_type, ["signs", weight.name, "one", "zero"], ["sums"], name=layer, domain=functions.DOMAIN
    )
    node.attribute.extend(a for a in original.attribute if a.name not in ("low", "high"))
    channels, outputs = input_channels(original), weight.dims[0]
    source = helper.make_tensor_value_info("signs", TensorProto.FLOAT, ["N", channels, "H", "W"])
    if packed:
        source = helper.make_tensor_value_info("signs", TensorProto.UINT8, ["N", "H", "W", 4 * words_for(channels)])
    ones = np.ones(outputs, np.float32)
    graph = helper.make_graph(
        [node],
        "layer",
        [source],
        [helper.make_tensor_value_info("sums", TensorProto.FLOAT, None)],
        [weight, numpy_helper.from_array(ones, "one"), numpy_helper.from_array(0 * ones, "zero")],
    )
    stored = (function for function in model.functions if function.name == op_type)
    # A file need not hold the plain function.
    function = next(stored, None) or functions.function(op_type)
    opsets = list(model.opset_import)
    return helper.make_model(graph, ir_version=model.ir_version, opset_imports=opsets, functions=[function]), packed


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(f"onnxruntime cannot be imported ({error}): pip install onnxruntime") from error
    return onnxruntime


def _errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a file that it cannot load or run; the classes share no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoModel",
        "NotImplemented",
        "RuntimeException",
    )
    return tuple(getattr(state, name) for name in names)
