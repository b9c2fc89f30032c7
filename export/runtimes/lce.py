"""Larq Compute Engine's own interpreter: the judge of LCE files.

Its Python package imports TensorFlow, its interpreter extension does not; so that extension is loaded by its path.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from importlib import metadata
from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import ExportError, MissingDependencyError
from bnnedge.export import graph as g
from bnnedge.export.runtimes.runtime import Images, Session, VerifyingRuntime
from bnnedge.export.targets.tflite_reader import BinaryLayer, Model, binary_layers, parse_model
from bnnedge.export.targets.tflite_writer import serialize
from bnnedge.export.targets.to_lce import LceTarget
from bnnedge.export.targets.window import Windows
from bnnedge.kernels.layout import unpack

Kernel = Literal["default", "indirect", "reference"]
_PACKAGE = "larq_compute_engine"
_EXTENSION = "interpreter_wrapper_lite"


class Lce(VerifyingRuntime):
    """The interpreter of larq-compute-engine 0.16.

    ``kernel`` chooses the implementation of the binary convolution: ``default`` is LCE's BGEMM, ``indirect`` its
    indirect BGEMM (single-threaded, the fastest on x86), ``reference`` a plain loop. The default kernel refuses grouped
    convolutions; files that hold one run with ``indirect`` instead.
    """

    name: ClassVar[str] = "lce"
    kernel: ClassVar[Kernel] = "default"

    @classmethod
    def unavailable(cls) -> str | None:
        spec = find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            return (
                "larq-compute-engine is not installed: pip install 'bnnedge[lce]' (it has wheels for CPython 3.10-3.12 "
                f"on x86-64 and macOS; this is CPython {platform.python_version()} on "
                f"{platform.system()} {platform.machine()})"
            )
        if int(np.__version__.split(".")[0]) >= 2:
            return f"LCE's interpreter works with numpy 1.26 only, found {np.__version__}: pip install 'numpy<2'"
        if _extension_path() is None:
            return "larq-compute-engine lacks its interpreter: pip install --force-reinstall larq-compute-engine"
        return None

    @classmethod
    def version(cls) -> str:
        try:
            return metadata.version("larq-compute-engine")
        except metadata.PackageNotFoundError as error:
            raise MissingDependencyError(cls.unavailable() or "larq-compute-engine has no version") from error

    @classmethod
    def open(cls, data: bytes, threads: int = 1) -> LceSession:
        """Load a file's bytes. Raises ``ExportError`` if they are damaged, ``MissingDependencyError`` without LCE."""
        return LceSession(parse_model(data), data, threads, cls.kernel)

    @classmethod
    def tap(cls, data: bytes, images: Images) -> tuple[NDArray[np.float32], dict[str, NDArray[np.int8]]]:
        model = parse_model(data)
        layers = list(binary_layers(model))
        tapped = list(dict.fromkeys(layer.signs for layer in layers))
        model.subgraph.outputs = [*model.outputs, *tapped]
        session = cls.open(serialize(model.raw))
        output, *words = session.invoke_all(session.prepare(images))
        found = dict(zip(tapped, words, strict=True))
        signs = {layer.name: unpack(found[layer.signs], layer.channels) for layer in layers}
        return output, {name: np.ascontiguousarray(s.transpose(0, 3, 1, 2)) for name, s in signs.items()}

    @classmethod
    def integers(cls, data: bytes, layer: str, signs: NDArray[np.int8]) -> NDArray[np.int32]:
        layers = {found.name: found for found in binary_layers(parse_model(data))}
        if layer not in layers:
            raise ExportError(f"the file holds no binary layer {layer!r}; it holds {', '.join(layers) or 'none'}")
        single = LceTarget().write(_single_layer(layers[layer], signs.shape))
        sums = cls.open(single).run(signs.astype(np.float32))
        return np.rint(sums).astype(np.int32)


class LceSession(Session):
    """A file in the LCE interpreter. Batches run image by image: the interpreter's input shape is fixed."""

    def __init__(self, model: Model, data: bytes, threads: int, kernel: Kernel) -> None:
        reason = Lce.unavailable()
        if reason is not None:
            raise MissingDependencyError(reason)
        if kernel == "default" and any(layer.groups > 1 and not layer.in_float for layer in binary_layers(model)):
            kernel = "indirect"
        self._data = data  # the interpreter reads constants from these bytes
        self._input_shape = model.shape(model.inputs[0])
        try:
            self._interpreter = _extension().LiteInterpreter(
                self._data, threads, kernel == "reference", kernel == "indirect", False
            )
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"LCE cannot load the file: {' '.join(str(error).split())}") from error

    def prepare(self, images: Images) -> NDArray[np.float32]:
        """Images [N, C, H, W] as contiguous NHWC, vectors [N, C] as they are."""
        stored = images.transpose(0, 2, 3, 1) if images.ndim == 4 else images
        if stored.shape[1:] != self._input_shape[1:]:
            raise ExportError(f"the file takes images of {self._input_shape[1:]} (H, W, C), found {stored.shape[1:]}")
        return np.ascontiguousarray(stored, np.float32)

    def invoke(self, prepared: NDArray[np.float32]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = self.invoke_all(prepared)[0]
        return output

    def invoke_all(self, prepared: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Every output of the file: the first in PyTorch's layout, further ones as they are stored."""
        results = [self._interpreter.predict([prepared[i : i + 1]]) for i in range(len(prepared))]
        first, *others = (np.concatenate(parts) for parts in zip(*results, strict=True))
        return [first.transpose(0, 3, 1, 2) if first.ndim == 4 else first, *others]


def _single_layer(layer: BinaryLayer, shape: tuple[int, ...]) -> g.Graph:
    """A graph of ``layer`` alone that gives its integers: multiplier 1, bias 0."""
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
    return g.Graph("signs", "sums", [g.Binarize(name="sign", inputs=("signs",), output="bits"), conv], tensors)


@lru_cache(maxsize=1)
def _extension() -> Any:
    path = _extension_path()
    if path is None:
        raise MissingDependencyError(Lce.unavailable() or "LCE's interpreter is missing")
    loader = ExtensionFileLoader(_EXTENSION, str(path))
    spec = spec_from_file_location(_EXTENSION, path, loader=loader)
    if spec is None:
        raise MissingDependencyError(f"{path} cannot be loaded")
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def _extension_path() -> Path | None:
    spec = find_spec(_PACKAGE)
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((path for folder in folders for path in Path(folder).glob(f"tflite/python/{_EXTENSION}*")), None)
