"""What the interpreters of LCE files share: NHWC inputs, and the tensors inside a file for verification."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ExportError
from bnnedge.export import graph as g
from bnnedge.export.runtimes.runtime import FileSession, Images, Inputs, Outputs, VerifyingRuntime
from bnnedge.export.targets.tflite.layers import BinaryLayer, binary_layers
from bnnedge.export.targets.tflite.reader import Model, parse_model
from bnnedge.export.targets.tflite.target import LceTarget
from bnnedge.export.targets.tflite.writer import serialize
from bnnedge.export.window import Windows
from bnnedge.kernels.layout import unpack


class TfliteSession(FileSession):
    """A TFLite file in an interpreter, which reads and writes images in NHWC."""

    def __init__(self, model: Model) -> None:
        self.input_names, self.output_names = model.input_names, model.output_names
        self._shapes = dict(zip(self.input_names, map(model.shape, model.inputs), strict=True))

    def prepare(self, images: Inputs) -> list[NDArray[np.float32]]:
        """The inputs in the order of the file: images [N, C, H, W] as contiguous NHWC, vectors [N, C] as they are."""
        return [self._prepared(name, values) for name, values in self.inputs_of(images).items()]

    def _prepared(self, name: str, images: Images) -> NDArray[np.float32]:
        stored = images.transpose(0, 2, 3, 1) if images.ndim == 4 else images
        expected = self._shapes[name][1:]
        if stored.shape[1:] != expected:
            raise ExportError(f"the file takes images of {expected} (H, W, C), found {stored.shape[1:]}")
        return np.ascontiguousarray(stored, np.float32)

    def invoke(self, prepared: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        return _channels_first(self.stored_outputs(prepared)[0])

    def invoke_all(self, prepared: list[NDArray[np.float32]]) -> Outputs:
        values = map(_channels_first, self.stored_outputs(prepared))
        return dict(zip(self.output_names, values, strict=True))

    @abstractmethod
    def stored_outputs(self, prepared: list[NDArray[np.float32]]) -> list[NDArray[Any]]:
        """Every output of the file as it is stored."""


def _channels_first(values: NDArray[Any]) -> NDArray[Any]:
    return values.transpose(0, 3, 1, 2) if values.ndim == 4 else values


class TfliteRuntime(VerifyingRuntime):
    """A runtime of TFLite files. To show a tensor, verification makes it an output of the file."""

    @classmethod
    @abstractmethod
    def open(cls, data: bytes, threads: int = 1) -> TfliteSession:
        """Load a file's bytes. Raises ``ExportError`` if they are damaged or hold operators it does not know."""

    @classmethod
    def tap(cls, data: bytes, images: Inputs) -> tuple[Outputs, dict[str, NDArray[np.int8]]]:
        model = parse_model(data)
        layers = list(binary_layers(model))
        tapped = list(dict.fromkeys(layer.signs for layer in layers))
        names = model.output_names
        model.tap([*model.outputs, *tapped])
        session = cls.open(serialize(model.raw))
        values = session.stored_outputs(session.prepare(images))
        found = dict(zip(tapped, values[len(names) :], strict=True))
        outputs = dict(zip(names, map(_channels_first, values), strict=False))
        signs = {layer.name: unpack(found[layer.signs], layer.channels) for layer in layers}
        return outputs, {name: np.ascontiguousarray(s.transpose(0, 3, 1, 2)) for name, s in signs.items()}

    @classmethod
    def codes(cls, data: bytes, images: Images, tensors: Sequence[str]) -> list[NDArray[np.int8]]:
        model = parse_model(data)
        named = {model.name(op.outputs[0]): (op.outputs[0], i) for i, op in enumerate(model.operators)}
        found = [named[name] for name in tensors]
        model.subgraph.operators = model.subgraph.operators[: max(last for _, last in found) + 1]
        model.tap([tensor for tensor, _ in found])
        session = cls.open(serialize(model.raw))
        values = session.stored_outputs(session.prepare(images))
        return [np.ascontiguousarray(codes.transpose(0, 3, 1, 2)) for codes in values]

    @classmethod
    def integers(cls, data: bytes, layer: str, signs: NDArray[np.int8]) -> NDArray[np.int32]:
        layers = {found.name: found for found in binary_layers(parse_model(data))}
        if layer not in layers:
            raise ExportError(f"the file holds no binary layer {layer!r}; it holds {', '.join(layers) or 'none'}")
        single = LceTarget().write(_single_layer(layers[layer], signs.shape))
        sums = cls.open(single).run(signs.astype(np.float32))
        return np.rint(sums).astype(np.int32)


def _single_layer(layer: BinaryLayer, shape: tuple[int, ...]) -> g.Graph:
    """A graph of ``layer`` alone with multiplier 1 and bias 0, whose output is the integer sums."""
    if not layer.is_torch:
        raise ExportError(f"{layer.name}: its padding is not PyTorch's; only files written by bnnedge can be verified")
    outputs = len(layer.weight)
    conv = g.BinaryConv2d(
        name=layer.name,
        inputs=("bits",),
        output="sums",
        weight=layer.weight,
        multiplier=np.ones(outputs),
        bias=np.zeros(outputs),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )
    kernel = (layer.weight.shape[2], layer.weight.shape[3])
    windows = Windows.of(layer.name, (shape[2], shape[3]), kernel, layer.stride, layer.padding, layer.dilation)
    tensors = {
        "signs": g.TensorSpec(shape),
        "bits": g.TensorSpec(shape, "bits"),
        "sums": g.TensorSpec((shape[0], outputs, *windows.output_size)),
    }
    return g.Graph(("signs",), ("sums",), [g.Binarize(name="sign", inputs=("signs",), output="bits"), conv], tensors)
