"""ONNX Runtime's own convolutions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.benchmarks.ops.engine import CHAIN, Engine, Prepared, signs
from bnnedge.benchmarks.ops.shapes import ConvShape


class OnnxRuntime(Engine):
    """ONNX Runtime: Conv in float32, or QLinearConv of uint8 activations and int8 weights.

    Pairs of products with weights of +-1 fit the 16 bits in which kernels for x86 without VNNI add them.
    """

    package = "onnxruntime"

    def __init__(self, integers: bool) -> None:
        self.integers = integers
        self.name = "ort int8" if integers else "ort fp32"

    def prepare(self, shape: ConvShape, threads: int) -> Prepared:
        import onnxruntime as ort

        calls = CHAIN if shape.chains else 1
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        session = ort.InferenceSession(self._model(shape, calls), options, providers=["CPUExecutionProvider"])
        x, _ = signs(shape)
        value = np.ascontiguousarray(x.transpose(2, 0, 1)[None])
        if self.integers:
            value = np.clip(value * 32 + 128, 0, 255).astype(np.uint8)
        output = np.empty((1, shape.out_channels, shape.out_height, shape.out_width), value.dtype)
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in (value, output)]
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", values[0])
        binding.bind_ortvalue_output("y", values[1])

        def run() -> None:
            assert values  # The binding does not keep the values, which own the memory that it reads and writes.
            session.run_with_iobinding(binding)

        return Prepared(run, calls)

    def _model(self, shape: ConvShape, calls: int) -> bytes:
        from onnx import TensorProto, helper, numpy_helper

        element = TensorProto.UINT8 if self.integers else TensorProto.FLOAT
        _, w = signs(shape)
        weight = np.ascontiguousarray(w.transpose(0, 3, 1, 2))
        constants: dict[str, NDArray[Any]] = {"w": weight.astype(np.float32) / shape.channels}
        if self.integers:
            constants = {
                "w": weight,
                "scale": np.array(1 / 32, np.float32),
                "w_scale": np.full(shape.out_channels, 1 / shape.channels, np.float32),
                "zero": np.array(128, np.uint8),
                "w_zero": np.zeros(shape.out_channels, np.int8),
            }
        attributes: dict[str, Any] = {"pads": [shape.padding] * 4, "strides": [shape.stride] * 2}
        names = ["x", *(f"v{i}" for i in range(1, calls)), "y"]
        nodes = []
        for source, target in pairwise(names):
            if self.integers:
                inputs = [source, "scale", "zero", "w", "w_scale", "w_zero", "scale", "zero"]
                nodes.append(helper.make_node("QLinearConv", inputs, [target], **attributes))
            else:
                nodes.append(helper.make_node("Conv", [source, "w"], [target], **attributes))
        graph = helper.make_graph(
            nodes,
            "conv",
            [helper.make_tensor_value_info("x", element, [1, shape.channels, shape.height, shape.width])],
            [helper.make_tensor_value_info("y", element, [1, shape.out_channels, shape.out_height, shape.out_width])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        return bytes(model.SerializeToString())
