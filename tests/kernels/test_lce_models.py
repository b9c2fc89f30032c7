"""Files by Larq Compute Engine's own converter (tests/lce_models): the delegate computes what LCE computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from bnnedge import cli
from bnnedge.export.runtimes import lce as lce_module
from bnnedge.export.runtimes.lce import Lce
from bnnedge.export.runtimes.litert import LiteRt
from bnnedge.export.targets.tflite.reader import Model, parse_model
from bnnedge.export.targets.tflite.target import LceTarget
from bnnedge.kernels import plugins
from bnnedge.kernels.plugins import litert_delegate

Array = NDArray[Any]
FOLDER = Path(__file__).resolve().parents[1] / "lce_models"
MODELS = sorted(path.stem for path in FOLDER.glob("*.tflite"))
MIXED = {"int8", "network", "residual"}
"""With operators that are not LCE's; in the others every value comes out of a binary operator."""
CONVERTER_IS_WRONG = {
    "symmetric_padding": "a pad of one on both sides is taken for SAME, which at stride 2 pads nothing before",
    "ternary_activations": "sign(sign(x) + c) is taken for a binary quantizer whatever c is",
}
INVENTED_RANGES = {"int8"}
REFERENCE_REFUSES = {"signs": "zero-padding of an odd number of channels"}
DEFAULT_REFUSES = {"groups": "grouped convolutions"}
DEFAULT_IS_WRONG = {"filter_larger_than_map": "outside taps count as +1 where the filter is larger than the map"}
ULP = 2.0**-24
"""Largest relative error of one float32 operation."""

unavailable = plugins.unavailable(plugins.LITERT_DELEGATE) or LiteRt.unavailable()
pytestmark = pytest.mark.skipif(unavailable is not None, reason=str(unavailable))
needs_lce = pytest.mark.skipif(Lce.unavailable() is not None, reason=str(Lce.unavailable()))


def load(name: str) -> tuple[bytes, Array, Array]:
    """The file, an input, and what Keras makes of it."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return (FOLDER / f"{name}.tflite").read_bytes(), arrays["x"], arrays["y"]


def run(data: bytes, x: Array, threads: int = 1, xnnpack: bool = True) -> Array:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    delegates = [litert_delegate(threads)]
    return invoke(
        Interpreter(model_content=data, experimental_delegates=delegates, experimental_op_resolver_type=resolver), x
    )


def invoke(interpreter: Any, x: Array) -> Array:
    entry, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    interpreter.resize_tensor_input(entry, x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry, x)
    interpreter.invoke()
    return cast(Array, interpreter.get_tensor(result))


def run_in_lce(data: bytes, x: Array, kernel: str) -> Array:
    session = lce_module._extension().LiteInterpreter(data, 1, kernel == "reference", kernel == "indirect", False)
    return cast(Array, session.predict([x])[0])


def largest(model: Model) -> float:
    """Bound of the numbers that the file's convolutions add up: 2 K |gamma| + |beta|, summed over convolutions."""
    total = 0.0
    for op in model.operators:
        if op.code == "LceBconv2d" and op.inputs[2] >= 0 and op.inputs[3] >= 0:
            _, height, width, words = model.shape(op.inputs[1])
            gamma, beta = (np.abs(model.constant(op.inputs[i])).max() for i in (2, 3))
            total += 2 * height * width * 32 * words * gamma + beta
    return total


@needs_lce
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", sorted(set(MODELS) - MIXED - set(REFERENCE_REFUSES)))
def test_binary_models_equal_the_reference_kernel(name: str, threads: int) -> None:
    """The files run in stock LiteRT with its own XNNPACK delegate."""
    data, x, _ = load(name)
    np.testing.assert_array_equal(run(data, x, threads), run_in_lce(data, x, "reference"))


@pytest.mark.parametrize("name", sorted(set(MODELS) - MIXED))
def test_tensorflows_own_interpreter_takes_the_delegate(name: str) -> None:
    tensorflow = pytest.importorskip("tensorflow", reason="pip install tensorflow")
    data, x, _ = load(name)
    delegates = [litert_delegate()]
    interpreter = tensorflow.lite.Interpreter(model_content=data, experimental_delegates=delegates)
    np.testing.assert_array_equal(invoke(interpreter, x), run(data, x))
    assert "DELEGATE" in [op["op_name"] for op in interpreter._get_ops_details()]


@needs_lce
@pytest.mark.parametrize("name", ["int8", "residual"])
def test_mixed_models_equal_the_reference_kernel(name: str) -> None:
    """LCE runs what is not binary on TensorFlow Lite's own kernels, not XNNPACK's; so does this."""
    data, x, _ = load(name)
    np.testing.assert_array_equal(run(data, x, xnnpack=False), run_in_lce(data, x, "reference"))


@needs_lce
@pytest.mark.parametrize("kernel", ["default", "indirect"])
@pytest.mark.parametrize("name", MODELS)
def test_other_kernels_of_lce(name: str, kernel: str) -> None:
    """Bit for bit, but for zero-padding, which these kernels correct in float after the transform, and float layers."""
    data, x, _ = load(name)
    if kernel == "default" and name in DEFAULT_REFUSES:
        with pytest.raises(RuntimeError):
            run_in_lce(data, x, kernel)
        return
    found, wanted = run(data, x, xnnpack=False), run_in_lce(data, x, kernel)
    model = parse_model(data)
    convolutions = [op.options for op in model.operators if op.code == "LceBconv2d"]
    zero_padded = any(options["padding"] == 0 and options["pad_values"] == 0 for options in convolutions)
    if name in DEFAULT_IS_WRONG:
        assert np.abs(found - wanted).max() > 1
    elif zero_padded or name == "network":
        np.testing.assert_allclose(found, wanted, rtol=0, atol=16 * ULP * largest(model))
    else:
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", sorted(set(MODELS) - INVENTED_RANGES))
def test_keras_agrees_unless_the_converter_is_wrong(name: str) -> None:
    """Both round each convolution's sum a few times; the float layers of ``network`` add little to that."""
    data, x, y = load(name)
    difference = np.abs(run(data, x) - y).max()
    if name in CONVERTER_IS_WRONG:
        assert difference > 1
    else:
        assert difference <= 16 * ULP * largest(parse_model(data))


@pytest.mark.parametrize("name", MODELS)
def test_batches(name: str) -> None:
    """An image gives the same bits alone and among others."""
    data, x, _ = load(name)
    batch = np.concatenate([x, -x, x])
    found = run(data, batch, threads=3)
    np.testing.assert_array_equal(found[2], found[0])
    if name not in MIXED:
        np.testing.assert_array_equal(found[:1], run(data, x))


@pytest.mark.parametrize("name", MODELS)
def test_files_can_be_described(name: str) -> None:
    data, x, _ = load(name)
    target = LceTarget()
    height, width, channels = x.shape[1:]
    assert target.read_metadata(data) == {"input_shape": [channels, height, width]}
    binary = [row for row in target.describe(data) if row.kind.startswith("binary conv")]
    assert len(binary) == sum(op.code == "LceBconv2d" for op in parse_model(data).operators)


def test_bench_and_evaluate_read_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, rows = str(FOLDER / "network.tflite"), tmp_path / "rows.jsonl"
    few = ["--runs", "2", "--warmup", "0"]
    assert cli.main(["bench", file, "--data", "digits", *few, "--json", str(rows)]) == 0
    row = json.loads(rows.read_text())
    assert row["runtime"] == "litert+bnnedge" and row["samples"] > 0
    capsys.readouterr()
    assert cli.main(["evaluate", file]) == 2
    message = capsys.readouterr().err
    assert "does not name its data set" in message and message.count("\n") == 1
