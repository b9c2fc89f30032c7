"""Running TFLite files in stock LiteRT with the delegate, and in LCE's own interpreter."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from bnnedge.export.runtimes import lce as lce_module
from bnnedge.export.runtimes.lce import Lce
from bnnedge.export.runtimes.litert import LiteRt
from bnnedge.kernels import native, plugins
from bnnedge.kernels.plugins import litert_delegate

Array = NDArray[Any]
Pair = tuple[int, int]

unavailable = plugins.unavailable(plugins.LITERT_DELEGATE) or LiteRt.unavailable()
needs_delegate = pytest.mark.skipif(unavailable is not None, reason=str(unavailable))
needs_lce = pytest.mark.skipif(Lce.unavailable() is not None, reason=str(Lce.unavailable()))


def interpreter(data: bytes, delegate: Any = None) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_content=data, experimental_delegates=[delegate or litert_delegate()])


def invoke(loaded: Any, x: Array) -> Array:
    """Run with the outputs of the last run overwritten."""
    (entry,), (result,) = loaded.get_input_details(), loaded.get_output_details()
    if tuple(entry["shape"]) != x.shape:
        loaded.resize_tensor_input(entry["index"], x.shape)
    loaded.allocate_tensors()
    loaded.set_tensor(entry["index"], x)
    loaded.tensor(result["index"])()[...] = 1  # a value that no result is full of
    loaded.invoke()
    return cast(Array, loaded.get_tensor(result["index"]))


def run(data: bytes, x: Array, delegate: Any = None) -> Array:
    return invoke(interpreter(data, delegate), x)


def run_in_lce(data: bytes, x: Array, kernel: str = "reference") -> Array:
    extension = lce_module._extension()
    loaded = extension.LiteInterpreter(data, 1, kernel == "reference", kernel == "indirect", False)
    return cast(Array, loaded.predict([x])[0])


def check_against(data: bytes, x: Array, wanted: Array) -> None:
    found = run(data, x)
    np.testing.assert_array_equal(found, wanted)
    if Lce.unavailable() is None:
        np.testing.assert_array_equal(found, run_in_lce(data, x))


def entering(data: bytes) -> list[list[int]]:
    """The tensors that each partition reads and does not write."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    loaded = Interpreter(
        model_content=data,
        experimental_delegates=[litert_delegate()],
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    loaded.allocate_tensors()
    return [[int(i) for i in op["inputs"]] for op in loaded._get_ops_details() if op["op_name"] == "DELEGATE"]


def partitions_of(data: bytes) -> int:
    return len(entering(data))


def multiplies_in_float() -> bool:
    """Whether the fastest kernel here computes float convolutions of 1x1 itself."""
    return native.available() and native.kernel_names()[0] not in ("popcnt", "portable", "reference")
