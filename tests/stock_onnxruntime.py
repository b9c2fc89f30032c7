"""Faults of ONNX Runtime's own kernels, found by probes; tests that compare with them are skipped then."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


@cache
def wrong_int8_convolution() -> str | None:
    """None, or a sentence that says what is wrong.

    ONNX Runtime 1.23, the last for Python 3.10, gives wrong and varying values in channels 16 to 30 of a convolution
    with 31 output channels where the CPU has AMX; 1.32 gives the right ones. Ones times ones make sums of 9.
    """
    constants = {
        "scale": np.float32(1),
        "zero": np.uint8(128),
        "w": np.full((31, 1, 3, 3), 129, np.uint8),
        "low": np.uint8(0),
    }
    node = helper.make_node("QLinearConv", ["x", "scale", "zero", "w", "scale", "zero", "scale", "low"], ["y"])
    graph = helper.make_graph(
        [node],
        "sums_of_nine",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [64, 1, 18, 18])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [64, 31, 16, 16])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.full((64, 1, 18, 18), 129, np.uint8)
    if all((session.run(None, {"x": x})[0] == 9).all() for _ in range(8)):
        return None
    return f"ONNX Runtime {onnxruntime.__version__} computes int8 convolutions wrong on this CPU"


@cache
def wrong_prelu() -> str | None:
    """None, or a sentence that says what is wrong.

    ONNX Runtime 1.23 gives NaN for infinite inputs and zeros of another sign; 1.32 gives the product with the slope.
    """
    graph = helper.make_graph(
        [helper.make_node("PRelu", ["x", "slope"], ["y"])],
        "infinity",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 6])],
        [numpy_helper.from_array(np.full(6, 0.5, np.float32), "slope")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    if (session.run(None, {"x": np.full((4, 6), np.inf, np.float32)})[0] == np.inf).all():
        return None
    return f"ONNX Runtime {onnxruntime.__version__} computes PRelu of infinity as NaN"
