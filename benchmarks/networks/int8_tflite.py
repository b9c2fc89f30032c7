"""The int8 twin for LiteRT, written by ourselves: TensorFlow's converter is not needed for so few operators.

The scheme is TFLite's: activations asymmetric with one scale a tensor, convolution filters symmetric with a scale per
output channel, dense weights symmetric with one scale, biases int32 in steps of input scale times weight scale. The
file takes and gives float32; a QUANTIZE and a DEQUANTIZE stand at its ends.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import BenchmarkError
from bnnedge.export.runtimes.runtime import Images
from bnnedge.export.targets.tflite.reader import Model, Operator, parse_model
from bnnedge.export.targets.tflite.writer import schema, serialize

_WEIGHTED = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": None}
"""Operators with weights and a bias, and the axis of the weights that has a scale each."""
_SAME_SCALE = ("PAD", "PADV2", "RESHAPE", "STRIDED_SLICE", "MAX_POOL_2D", "AVERAGE_POOL_2D")
"""Operators whose output must have the scale of their input."""
_OWN_SCALE = ("ADD", "SUB", "MUL", "MEAN")

Range = tuple[float, float]


def quantize_tflite(data: bytes, images: Images) -> bytes:
    """``data``, a float32 file of ``LceTarget``, in int8 with ranges from ``images`` [N, C, H, W].

    Raises ``BenchmarkError`` naming an operator that it does not know.
    """
    model = parse_model(data)
    for operator in model.operators:
        if operator.code not in (*_WEIGHTED, *_SAME_SCALE, *_OWN_SCALE):
            raise BenchmarkError(f"no int8 twin for LiteRT: {operator.code} is not among those that can be quantized")
    _Quantizer(model, activation_ranges(model, data, images)).run()
    return serialize(model.raw)


def activation_ranges(model: Model, data: bytes, images: Images) -> dict[int, Range]:
    """Smallest and largest value of the input and of each operator's output, 0 included."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter: Any = Interpreter(
        model_content=data,
        # A delegate would keep the tensors between its operators to itself.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    tensors = [*model.inputs, *(op.outputs[0] for op in model.operators)]
    ranges = dict.fromkeys(tensors, (0.0, 0.0))
    for i in range(len(images)):
        interpreter.set_tensor(model.inputs[0], np.ascontiguousarray(images[i : i + 1].transpose(0, 2, 3, 1)))
        interpreter.invoke()
        for tensor in tensors:
            values = interpreter.get_tensor(tensor)
            low, high = ranges[tensor]
            ranges[tensor] = min(low, float(values.min())), max(high, float(values.max()))
    return ranges


class _Quantizer:
    """Quantizes the tensors of ``model`` in place."""

    def __init__(self, model: Model, ranges: dict[int, Range]) -> None:
        self._raw = model.raw
        self._model = model
        self._tensors = model.subgraph.tensors
        self._ranges = ranges

    def run(self) -> None:
        """Quantize every operator, in execution order, so that inputs come before outputs."""
        source, result = self._model.inputs[0], self._model.outputs[0]
        self._activation(source)
        for operator in self._model.operators:
            self._operator(operator)
        outside = self._copy_as_float(source), self._copy_as_float(result)
        self._model.subgraph.inputs, self._model.subgraph.outputs = [outside[0]], [outside[1]]
        operators = self._model.subgraph.operators
        operators.insert(0, self._conversion("QUANTIZE", "QuantizeOptions", outside[0], source))
        operators.append(self._conversion("DEQUANTIZE", "DequantizeOptions", result, outside[1]))
        used = {tensor.buffer for tensor in self._tensors} | {entry.buffer for entry in self._raw.metadata or ()}
        for index, buffer in enumerate(self._raw.buffers):
            if index not in used:
                buffer.data = None

    def _operator(self, operator: Operator) -> None:
        first, output = operator.inputs[0], operator.outputs[0]
        if operator.code in _WEIGHTED:
            weight, bias = operator.inputs[1:3]
            self._weight(weight, _WEIGHTED[operator.code])
            self._bias(bias, first, weight)
        elif operator.code in _OWN_SCALE and operator.code != "MEAN":
            for tensor in operator.inputs:
                if self._is_constant(tensor):
                    self._constant(tensor)
        if operator.code in _SAME_SCALE:
            if operator.code == "PADV2":
                self._constant(operator.inputs[2], self._tensors[first].quantization)
            self._set(output, self._tensors[first].quantization, "INT8")
        else:
            self._activation(output)

    def _is_constant(self, tensor: int) -> bool:
        stored = self._raw.buffers[self._tensors[tensor].buffer].data
        return stored is not None and len(stored) > 0

    def _floats(self, tensor: int) -> NDArray[np.float64]:
        stored = self._raw.buffers[self._tensors[tensor].buffer].data
        shape = [int(size) for size in self._tensors[tensor].shape]
        return np.frombuffer(bytes(stored), np.float32).reshape(shape).astype(np.float64)

    def _activation(self, tensor: int) -> None:
        scale, zero = _affine_range(*self._ranges[tensor])
        self._set(tensor, _parameters([scale], [zero]), "INT8")

    def _constant(self, tensor: int, parameters: Any = None) -> None:
        """Quantize a constant with ``parameters``, or without them by its own range."""
        values = self._floats(tensor)
        if parameters is None:
            scale, zero = _affine_range(min(0.0, float(values.min())), max(0.0, float(values.max())))
            parameters = _parameters([scale], [zero])
        codes = np.rint(values / parameters.scale[0]) + parameters.zeroPoint[0]
        self._store(tensor, np.clip(codes, -128, 127).astype(np.int8))
        self._set(tensor, parameters, "INT8")

    def _weight(self, tensor: int, axis: int | None) -> None:
        values = self._floats(tensor)
        others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis)
        largest = np.abs(values).max(axis=others, keepdims=True)
        scale = np.where(largest > 0, largest, 1) / 127
        self._store(tensor, np.rint(values / scale).astype(np.int8))
        self._set(tensor, _parameters(scale.ravel(), np.zeros(scale.size), axis or 0), "INT8")

    def _bias(self, tensor: int, source: int, weight: int) -> None:
        steps = np.array(self._tensors[weight].quantization.scale) * self._tensors[source].quantization.scale[0]
        limit = 2**30  # room for the sum beside it
        self._store(tensor, np.clip(np.rint(self._floats(tensor) / steps), -limit, limit).astype(np.int32))
        self._set(tensor, _parameters(steps, np.zeros(steps.size)), "INT32")

    def _store(self, tensor: int, values: NDArray[Any]) -> None:
        # A buffer of its own: equal float constants share one, and may have different scales.
        self._tensors[tensor].buffer = len(self._raw.buffers)
        self._raw.buffers.append(schema().BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))

    def _set(self, tensor: int, parameters: Any, element: str) -> None:
        self._tensors[tensor].type = getattr(schema().TensorType, element)
        self._tensors[tensor].quantization = parameters

    def _copy_as_float(self, tensor: int) -> int:
        original = self._tensors[tensor]
        copy = schema().TensorT(
            shape=original.shape, type=schema().TensorType.FLOAT32, name=f"float/{tensor}", hasRank=True
        )
        self._tensors.append(copy)
        return len(self._tensors) - 1

    def _conversion(self, name: str, options: str, source: int, target: int) -> Any:
        code = getattr(schema().BuiltinOperator, name)
        self._raw.operatorCodes.append(
            schema().OperatorCodeT(deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=1)
        )
        return schema().OperatorT(
            opcodeIndex=len(self._raw.operatorCodes) - 1,
            inputs=[source],
            outputs=[target],
            builtinOptionsType=getattr(schema().BuiltinOptions, options),
            builtinOptions=getattr(schema(), f"{options}T")(),
        )


def _affine_range(low: float, high: float) -> tuple[float, int]:
    """(scale, zero point) that spread int8 over ``low`` <= 0 <= ``high`` and hold 0 exactly."""
    scale = float(np.float32((high - low) / 255 or 1.0))
    return scale, int(np.clip(np.rint(-128 - low / scale), -128, 127))


def _parameters(scale: Any, zero: Any, axis: int = 0) -> Any:
    # The schema's writer takes lists and stores scales as float32, so they are rounded here, where it can be seen.
    parameters = schema().QuantizationParametersT()
    parameters.scale = [float(np.float32(s)) for s in scale]
    parameters.zeroPoint = [int(z) for z in zero]
    parameters.quantizedDimension = axis
    return parameters
