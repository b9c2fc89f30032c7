"""Int8 stems in the LiteRT delegate: codes are those of LiteRT's reference kernels, exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from bnnedge.export.runtimes.litert import LiteRt
from bnnedge.export.targets.tflite.reader import parse_model
from bnnedge.export.targets.tflite.writer import TfliteWriter, schema, serialize
from bnnedge.kernels import native, plugins
from bnnedge.kernels.layout import unpack
from bnnedge.kernels.plugins import litert_delegate

Array = NDArray[Any]
Pair = tuple[int, int]
SAME, VALID = 0, 1
LOWEST_CODE = -128

unavailable = plugins.unavailable(plugins.LITERT_DELEGATE) or LiteRt.unavailable()
pytestmark = pytest.mark.skipif(unavailable is not None, reason=str(unavailable))
KERNELS = native.kernel_names() if native.available() else []


@dataclass(frozen=True)
class Stem:
    """A file of one stem, with sums near ties and codes at both ends."""

    size: Pair = (10, 13)
    channels: int = 3
    outputs: int = 9
    folds: bool = False
    kernel: Pair = (3, 3)
    strides: Pair = (1, 1)
    padding: int = VALID
    edges: tuple[Pair, Pair] | None = ((1, 1), (1, 0))
    """The paddings of the PAD before the convolution; None if there is no PAD."""
    pool: Pair | None = (3, 2)
    pool_strides: Pair = (2, 1)
    pool_padding: int = SAME
    pool_edges: tuple[Pair, Pair] | None = None
    dequantizes: bool = True
    lowest: bool = True
    activation: int = 0
    taps: tuple[str, ...] = ()
    """Tensors that the file gives out, too."""

    def file(self) -> bytes:
        rng = np.random.default_rng(self.channels + 7 * self.outputs)
        writer = TfliteWriter()
        tensors: dict[str, int] = {}

        def add(name: str, shape: tuple[int, ...], codes: tuple[float, int] | None = None) -> int:
            tensors[name] = writer.tensor(name, shape, "int8" if codes else "float32")
            if codes:
                writer.quantize(tensors[name], [codes[0]], codes[1])
            return tensors[name]

        def pad(name: str, source: int, edges: tuple[Pair, Pair]) -> int:
            shape = list(writer.shape(source))
            for axis in (0, 1):
                shape[1 + axis] += sum(edges[axis])
            target = add(name, tuple(shape), (1.0, 0))
            writer.copy_quantization(source, target)
            return writer.builtin("PAD", [source, writer.literal(np.array([(0, 0), *edges, (0, 0)], np.int32))], target)

        image = add("image", (1, *self.size, self.channels))
        source, channels, size = image, self.channels, list(self.size)
        if self.folds:
            channels, size = 4 * channels, [s // 2 for s in size]
            folded = add("folded", (1, *size, channels))
            source = writer.builtin("SPACE_TO_DEPTH", [source], folded, blockSize=2)
        source = writer.builtin("QUANTIZE", [source], add("entered", (1, *size, channels), (0.25, -9)))
        if self.edges is not None:
            source = pad("padded", source, self.edges)
        weight = rng.integers(-127, 128, (self.outputs, *self.kernel, channels)).astype(np.int8)
        scales = np.exp2(-rng.integers(3, 12, self.outputs).astype(np.float64))
        scales[::3] = rng.uniform(1e-3, 0.1, len(scales[::3]))
        scales[1::5] *= 100
        filters = writer.constant("weight", weight)
        writer.quantize(filters, scales)
        numbers = rng.integers(-500, 500, self.outputs).astype(np.int32)
        numbers[4::5] *= 100_000
        bias = writer.constant("bias", numbers)
        writer.quantize(bias, scales * 0.25)
        shape = self._windows(writer.shape(source), self.kernel, self.strides, self.padding)
        convolved = add("convolved", (*shape, self.outputs), (0.5, LOWEST_CODE))
        strides = {"strideH": self.strides[0], "strideW": self.strides[1]}
        options = {**strides, "dilationHFactor": 1, "dilationWFactor": 1, "fusedActivationFunction": self.activation}
        last = writer.builtin("CONV_2D", [source, filters, bias], convolved, padding=self.padding, **options)
        if self.pool is not None:
            if self.pool_edges is not None:
                last = pad("padded_sums", last, self.pool_edges)
            shape = self._windows(writer.shape(last), self.pool, self.pool_strides, self.pool_padding)
            pooled = add("pooled", (*shape, self.outputs), (0.5, LOWEST_CODE))
            window = {"filterHeight": self.pool[0], "filterWidth": self.pool[1], "padding": self.pool_padding}
            strides = {"strideH": self.pool_strides[0], "strideW": self.pool_strides[1]}
            last = writer.builtin("MAX_POOL_2D", [last], pooled, **window, **strides)
        if self.dequantizes:
            last = writer.builtin("DEQUANTIZE", [last], add("floats", writer.shape(last)))
        if self.lowest:
            lowest = writer.constant("lowest", rng.normal(size=self.outputs).astype(np.float32))
            last = writer.builtin("ADD", [last, lowest], add("values", writer.shape(last)))
        return writer.finish([image], [last, *(tensors[name] for name in self.taps)], {})

    @staticmethod
    def _windows(shape: tuple[int, ...], kernel: Pair, strides: Pair, padding: int) -> tuple[int, ...]:
        reach = (1, 1) if padding == SAME else kernel
        return (1, *((shape[1 + i] - reach[i]) // strides[i] + 1 for i in (0, 1)))

    def image(self, batch: int = 1) -> Array:
        """Multiples of half a code's step, and what lies beyond all codes."""
        rng = np.random.default_rng(batch + self.size[0])
        x = (rng.integers(-300, 301, (batch, *self.size, self.channels)) / 8).astype(np.float32)
        x.flat[:: max(1, x.size // 5)] = 1e6
        return x


def with_signs(data: bytes) -> bytes:
    """The file with the packed signs of its first output as a second one."""
    raw = parse_model(data).raw
    graph, s = raw.subgraphs[0], schema()
    values = graph.tensors[graph.outputs[0]]
    shape = [*values.shape[:-1], -(-int(values.shape[-1]) // 32)]
    graph.tensors.append(s.TensorT(shape=shape, type=s.TensorType.INT32, buffer=0, name="signs", hasRank=True))
    raw.operatorCodes.append(
        s.OperatorCodeT(deprecatedBuiltinCode=32, builtinCode=32, customCode="LceQuantize", version=1)
    )
    op = s.OperatorT(
        opcodeIndex=len(raw.operatorCodes) - 1, inputs=[graph.outputs[0]], outputs=[len(graph.tensors) - 1]
    )
    graph.operators.append(op)
    graph.outputs = [*graph.outputs, len(graph.tensors) - 1]
    return serialize(raw)


def run(data: bytes, x: Array, delegate: Any = None) -> tuple[list[Array], list[str]]:
    """Outputs by the delegate, or by LiteRT's reference kernels; and the operators that ran."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    options = {"experimental_op_resolver_type": OpResolverType.BUILTIN_REF}
    loaded = Interpreter(model_content=data, **({"experimental_delegates": [delegate]} if delegate else options))
    entry = loaded.get_input_details()[0]
    if tuple(entry["shape"]) != x.shape:
        loaded.resize_tensor_input(entry["index"], x.shape)
    loaded.allocate_tensors()
    loaded.set_tensor(entry["index"], x)
    loaded.invoke()
    ops = [op["op_name"] for op in loaded._get_ops_details()]
    return [cast(Array, loaded.get_tensor(o["index"])) for o in loaded.get_output_details()], ops


def check(stem: Stem, batch: int = 1, kernel: str | None = None, threads: int = 1) -> None:
    data, x = stem.file(), stem.image(batch)
    expected, _ = run(data, x)
    found, ops = run(data, x, litert_delegate(threads, kernel=kernel))
    assert ops.count("DELEGATE") == 1
    for e, a in zip(expected, found, strict=True):
        np.testing.assert_array_equal(e, a)
    assert len(np.unique(expected[0])) > 4  # it is not all saturated
    if stem.dequantizes:
        again, ops = run(with_signs(data), x, litert_delegate(threads, kernel=kernel))
        assert ops.count("DELEGATE") == 1
        np.testing.assert_array_equal(again[0], expected[0])
        signs = unpack(again[-1].view(np.uint32), stem.outputs)
        np.testing.assert_array_equal(signs < 0, expected[0] < 0)


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize(("padding", "pool_padding"), list(product((SAME, VALID), repeat=2)))
def test_each_form(folds: bool, padding: int, pool_padding: int) -> None:
    stem = Stem((20, 22), folds=folds, padding=padding, pool_padding=pool_padding, edges=None)
    check(stem, batch=2)
    check(replace(stem, strides=(2, 3), lowest=False))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("channels", "outputs"), [(1, 1), (2, 15), (3, 33), (4, 64), (17, 31)])
def test_channels(channels: int, outputs: int, kernel: str) -> None:
    check(Stem(channels=channels, outputs=outputs), kernel=kernel)


@pytest.mark.parametrize("stem", [
    Stem((28, 30), folds=True, outputs=64, kernel=(4, 4), edges=((2, 1), (2, 1)), pool=(3, 3), pool_strides=(2, 2),
         pool_padding=VALID, pool_edges=((1, 0), (1, 1))),
    Stem((1, 1), kernel=(1, 1), edges=None, pool=None),
    Stem((2, 9), kernel=(1, 5), strides=(1, 3), edges=((0, 0), (0, 4))),
    Stem((9, 8), kernel=(7, 7), edges=((3, 3), (3, 3)), pool=None), Stem(pool=None, lowest=False),
])  # fmt: skip
def test_windows(stem: Stem) -> None:
    check(stem)


def test_threads() -> None:
    check(Stem((96, 80), outputs=64), threads=3)


@pytest.mark.parametrize(
    "taps", [("entered",), ("convolved", "entered"), ("pooled",), ("entered", "convolved", "pooled")]
)
def test_codes_can_be_had(taps: tuple[str, ...]) -> None:
    check(Stem((12, 10), folds=True, taps=taps), batch=2)
    check(Stem((12, 10), taps=taps, dequantizes=False, lowest=False))


def test_sizes_change_between_runs() -> None:
    from ai_edge_litert.interpreter import Interpreter

    stem = Stem(padding=SAME, edges=None, strides=(2, 2))
    loaded = Interpreter(model_content=stem.file(), experimental_delegates=[litert_delegate()])
    for size, batch in (((10, 13), 1), ((11, 6), 3), ((7, 7), 1), ((10, 13), 2)):
        other = replace(stem, size=size)
        x = other.image(batch)
        loaded.resize_tensor_input(loaded.get_input_details()[0]["index"], x.shape)
        loaded.allocate_tensors()
        loaded.set_tensor(loaded.get_input_details()[0]["index"], x)
        loaded.invoke()
        found = loaded.get_tensor(loaded.get_output_details()[0]["index"])
        np.testing.assert_array_equal(found, run(other.file(), x)[0][0])


def test_what_is_no_stem_is_left_to_the_interpreter() -> None:
    """An activation, pads beyond the kernel, a second reader, pads of a pool beyond the kernel."""
    for stem in (
        Stem(activation=1), Stem(edges=((3, 0), (1, 1))), Stem(taps=()),
        Stem(pool_edges=((0, 0), (0, 2)), pool_padding=VALID),
    ):  # fmt: skip
        data = stem.file()
        if stem == Stem():
            data = read_twice(data)
        _, ops = run(data, stem.image(), litert_delegate())
        assert "CONV_2D" in ops


def read_twice(data: bytes) -> bytes:
    """The file with a second reader of the codes of the image."""
    raw = parse_model(data).raw
    graph, s = raw.subgraphs[0], schema()
    entered = next(i for i, t in enumerate(graph.tensors) if t.name == b"entered")
    target = s.TensorT(
        shape=list(graph.tensors[entered].shape), type=s.TensorType.FLOAT32, buffer=0, name="again", hasRank=True
    )
    graph.tensors.append(target)
    raw.operatorCodes.append(s.OperatorCodeT(deprecatedBuiltinCode=6, builtinCode=6, version=1))
    graph.operators.append(
        s.OperatorT(opcodeIndex=len(raw.operatorCodes) - 1, inputs=[entered], outputs=[len(graph.tensors) - 1])
    )
    graph.outputs = [*graph.outputs, len(graph.tensors) - 1]
    return serialize(raw)


def test_padding_inside_is_no_output() -> None:
    with pytest.raises(RuntimeError, match="'padded' is padding inside of an int8 stem and cannot be an output"):
        run(Stem(taps=("padded",)).file(), Stem().image(), litert_delegate())


def test_bad_sizes() -> None:
    with pytest.raises(RuntimeError, match="the filter does not fit into an input of 1 x 13"):
        run(Stem(edges=None, pool=None).file(), Stem((1, 13)).image(), litert_delegate())
    with pytest.raises(RuntimeError, match="an input of 11 x 14 cannot be folded"):
        run(Stem((12, 14), folds=True).file(), Stem((11, 14)).image(), litert_delegate())
