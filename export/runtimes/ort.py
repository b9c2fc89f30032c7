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
from bnnedge.export.targets import onnx_functions
from bnnedge.export.targets.onnx_file import binary_nodes, load_model

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
        output: NDArray[np.float32] = self._session.run(self._output_names, {self._input.name: prepared})[0]
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
        for tensor in dict.fromkeys(node.input[0] for node in layers):
            if tensor not in own:
                model.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
        inference = cls._inference_session(model.SerializeToString(), threads=1)
        prepared = OnnxRuntimeSession(inference).prepare(images)
        input_name, names = model.graph.input[0].name, [info.name for info in model.graph.output]
        values = dict(zip(names, inference.run(names, {input_name: prepared}), strict=True))
        output: NDArray[np.float32] = values[names[0]]
        values[input_name] = prepared
        return output, {node.name: np.where(values[node.input[0]] < 0, -1, 1).astype(np.int8) for node in layers}

    @classmethod
    def integers(cls, data: bytes, layer: str, signs: NDArray[np.int8]) -> NDArray[np.int32]:
        session = cls.open(_one_layer_model(load_model(data), layer).SerializeToString())
        sums = session.run(signs.astype(np.float32))
        rounded = np.rint(sums).astype(np.int32)
        if not np.array_equal(rounded, sums):
            raise ExportError(f"{layer}: the runtime's sums are not integers; its convolution is not exact")
        return rounded

    @classmethod
    def codes(cls, data: bytes, images: Images, tensors: Sequence[str]) -> list[NDArray[np.int8]]:
        model = load_model(data)
        del model.graph.output[:]
        model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in tensors)
        inference = cls._inference_session(model.SerializeToString(), threads=1)
        prepared = OnnxRuntimeSession(inference).prepare(images)
        stored = inference.run(list(tensors), {model.graph.input[0].name: prepared})
        return [(codes.astype(np.int16) + LOWEST_CODE).astype(np.int8) for codes in stored]

    @classmethod
    def _inference_session(cls, data: bytes, threads: int) -> Any:
        errors = _load_errors()
        try:
            return _onnxruntime().InferenceSession(
                data, cls.session_options(threads), providers=["CPUExecutionProvider"]
            )
        except errors as error:
            reason = " ".join(str(error).split())[:300]
            raise ExportError(f"ONNX Runtime {cls.version()} cannot load the file: {reason}") from error


def _one_layer_model(model: ModelProto, layer: str) -> ModelProto:
    """Binary convolution ``layer`` alone with the file's own weights, multiplier 1, bias 0 and no threshold."""
    layers = {node.name: node for node in binary_nodes(model)}
    if layer not in layers:
        raise ExportError(f"the ONNX file has no binary convolution {layer!r}; it has: {', '.join(layers) or 'none'}")
    original = layers[layer]
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == original.input[1])
    node = NodeProto()
    node.CopyFrom(original)
    node.op_type = onnx_functions.BINARY_CONV
    del node.input[:], node.output[:]
    node.input.extend(["signs", weight.name, "one", "zero"])
    node.output.append("sums")
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in original.attribute}
    outputs, channels = weight.dims[0], attributes["channels"][0] * attributes["group"]
    ones = np.ones(outputs, np.float32)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("signs", TensorProto.FLOAT, ["N", channels, "H", "W"])],
        [helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["N", outputs, "OH", "OW"])],
        [weight, numpy_helper.from_array(ones, "one"), numpy_helper.from_array(0 * ones, "zero")],
    )
    stored = (function for function in model.functions if function.name == onnx_functions.BINARY_CONV)
    # A file whose layers all end in thresholds does not hold the plain function.
    function = next(stored, None) or onnx_functions.function(onnx_functions.BINARY_CONV)
    return helper.make_model(
        graph, ir_version=model.ir_version, opset_imports=list(model.opset_import), functions=[function]
    )


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(f"onnxruntime cannot be imported ({error}): pip install onnxruntime") from error
    return onnxruntime


def _load_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a file that it cannot load; the classes share no base of their own."""
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
