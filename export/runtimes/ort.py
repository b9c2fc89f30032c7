"""Stock ONNX Runtime on the CPU. It inlines the functions that the file carries for the binary operators."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bnnedge.errors import DataError, ExportError, MissingDependencyError
from bnnedge.export.graph import LOWEST_CODE
from bnnedge.export.runtimes.forked import never_drop_in_forked_processes
from bnnedge.export.runtimes.runtime import FileSession, Images, Inputs, Outputs, VerifyingRuntime
from bnnedge.export.targets.onnx import functions
from bnnedge.export.targets.onnx.reader import binary_nodes, input_channels, load_model
from bnnedge.kernels.layout import pack, unpack, words_for
from bnnedge.noise import without_noise

_FATAL_ONLY = 4


class OnnxRuntimeSession(FileSession):
    """A file in an ``InferenceSession`` of ONNX Runtime, whose layout is NCHW."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._shapes = {each.name: each.shape for each in session.get_inputs()}
        self.input_names = tuple(self._shapes)
        self.output_names = tuple(output.name for output in session.get_outputs())

    def prepare(self, images: Inputs) -> dict[str, Images]:
        """Contiguous float32 by name. Raises ``DataError`` unless the shapes are those of the file's inputs."""
        return {name: self._prepared(name, values) for name, values in self.inputs_of(images).items()}

    def _prepared(self, name: str, images: Images) -> Images:
        expected = self._shapes[name]
        fits = len(expected) == images.ndim and all(
            not isinstance(size, int) or size == found for size, found in zip(expected, images.shape, strict=True)
        )
        if not fits:
            wanted, found = (" x ".join(map(str, shape)) for shape in (expected, images.shape))
            raise DataError(f"the ONNX file takes images {wanted}, found {found}")
        return np.ascontiguousarray(images, dtype=np.float32)

    def invoke(self, prepared: dict[str, Images]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = self.values(prepared, self.output_names[:1])[0]
        return output

    def invoke_all(self, prepared: dict[str, Images]) -> Outputs:
        return dict(zip(self.output_names, self.values(prepared, self.output_names), strict=True))

    def values(self, prepared: dict[str, Images], tensors: Sequence[str]) -> list[NDArray[Any]]:
        """The values of output tensors by their names."""
        try:
            values: list[NDArray[Any]] = self._session.run(list(tensors), prepared)
        except _errors() as error:
            reason = " ".join(str(error).split())[:300]
            batch = len(next(iter(prepared.values())))
            raise ExportError(f"ONNX Runtime cannot run a batch of {batch}: {reason}") from error
        return values


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
    def tap(cls, data: bytes, images: Inputs) -> tuple[Outputs, dict[str, NDArray[np.int8]]]:
        model = load_model(data)
        layers = binary_nodes(model)
        outputs = [info.name for info in model.graph.output]
        known = {*outputs, *(info.name for info in model.graph.input)}
        for tensor, node in {node.input[0]: node for node in layers}.items():
            if tensor not in known:
                kind = TensorProto.UINT8 if functions.is_packed(node.op_type) else TensorProto.FLOAT
                model.graph.output.append(helper.make_tensor_value_info(tensor, kind, None))
        session = OnnxRuntimeSession(cls._inference_session(model.SerializeToString(), threads=1))
        prepared = session.prepare(images)
        values: dict[str, NDArray[Any]] = {**prepared, **session.invoke_all(prepared)}
        signs = {node.name: _signs(node, values[node.input[0]]) for node in layers}
        return {name: values[name] for name in outputs}, signs

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
        del model.graph.output[:]
        if stem is not None:
            found = cls._codes_of_stem(model, stem, images)
        else:
            infos = [helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in tensors]
            model.graph.output.extend(infos)
            found = cls._values(model, images)
        return [np.ascontiguousarray(codes.astype(np.int16) + LOWEST_CODE, np.int8) for codes in found]

    @classmethod
    def _codes_of_stem(cls, model: ModelProto, stem: NodeProto, images: Images) -> list[NDArray[Any]]:
        """The unsigned codes [N, C, H, W] that enter and that leave the convolution of a stem that is one node.

        The node gives floats alone. The codes that enter come from a second node beside it, whose function is the
        first part of the stem's own; the codes that leave are calculated back from the floats.
        """
        function = next(f for f in model.functions if f.name == stem.op_type)
        model.functions.append(functions.with_codes(function))
        entered = NodeProto()
        entered.CopyFrom(stem)
        entered.op_type += functions.CODES_SUFFIX
        entered.name += functions.CODES_SUFFIX
        entered.output[:] = [f"{stem.name}/entered"]
        model.graph.node.append(entered)
        for name, kind in ((entered.output[0], TensorProto.UINT8), (stem.output[0], TensorProto.FLOAT)):
            model.graph.output.append(helper.make_tensor_value_info(name, kind, None))
        codes, values = cls._values(model, images)
        left = _codes_of_values(values, *(_constant(model, stem.input[i]) for i in (5, 6, 8)))
        return [codes, left.transpose(0, 3, 1, 2)]

    @classmethod
    def _values(cls, model: ModelProto, images: Images) -> list[NDArray[Any]]:
        """The outputs of a model of one input."""
        session = OnnxRuntimeSession(cls._inference_session(model.SerializeToString(), threads=1))
        return session.values(session.prepare(images), session.output_names)

    @classmethod
    def _inference_session(cls, data: bytes, threads: int) -> Any:
        errors = _errors()
        try:
            with without_noise():
                session = _onnxruntime().InferenceSession(
                    data, cls.session_options(threads), providers=["CPUExecutionProvider"]
                )
            return never_drop_in_forked_processes(session)
        except errors as error:
            reason = " ".join(str(error).split())[:300]
            raise ExportError(f"ONNX Runtime {cls.version()} cannot load the file: {reason}") from error


def _constant(model: ModelProto, name: str) -> NDArray[Any]:
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def _codes_of_values(
    values: NDArray[np.float32], scale: NDArray[np.float32], zero_point: NDArray[np.uint8], lowest: NDArray[np.float32]
) -> NDArray[np.int16]:
    """The codes whose dequantized values are exactly ``values`` [N, H, W, O]; ``lowest`` is [O]."""
    codes: NDArray[np.int16] = np.rint((values - lowest) / scale).astype(np.int16) + zero_point
    again = (codes.astype(np.float32) - zero_point) * scale + lowest
    if not np.array_equal(again, values):
        raise ExportError("the stem gives a value that none of its codes stands for; export the file again")
    return codes


def _signs(node: NodeProto, values: NDArray[Any]) -> NDArray[np.int8]:
    """The signs that enter a binary convolution, int8 [N, C, H, W], from its first input in the file."""
    if not functions.is_packed(node.op_type):
        return np.where(values < 0, -1, 1).astype(np.int8)
    words = np.ascontiguousarray(values).view("<u4")
    return np.ascontiguousarray(unpack(words, input_channels(node)).transpose(0, 3, 1, 2))


def _one_layer_model(model: ModelProto, layer: str) -> tuple[ModelProto, bool]:
    """A model of binary convolution ``layer`` alone, with the file's weights, multiplier 1 and bias 0.

    Also returns whether its input ``signs`` is packed.
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
    # The file may hold the convolution with further steps only, and not the plain function.
    function = next(stored, None) or functions.function(op_type)
    opsets = list(model.opset_import)
    return helper.make_model(graph, ir_version=model.ir_version, opset_imports=opsets, functions=[function]), packed


@cache
def _onnxruntime() -> Any:
    try:
        with without_noise():
            import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(f"onnxruntime cannot be imported ({error}): pip install onnxruntime") from error
    return onnxruntime


def _errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a file that it cannot load or run. The classes have no common base but Exception."""
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
