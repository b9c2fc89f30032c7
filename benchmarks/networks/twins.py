"""One topology in all the forms that are compared: binary, float32 and int8; as ONNX, as TFLite and in PyTorch.

The weights are untrained, which no runtime's speed depends on. In an untrained binary network one sign turned by
rounding turns some twenty in the next layer, and the outputs of two right runtimes have nothing in common. So every
number that enters a sign is made a small multiple of a power of two (``settle``): float32 holds all sums exactly,
whatever their order, and all runtimes must give the same signs.

A twin is the network with its signs taken out and its weights, +-1 times a channel's scale, as ordinary numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from bnnedge.benchmarks.environment import read_environment
from bnnedge.benchmarks.networks.int8_onnx import quantize_onnx, weight_bits
from bnnedge.benchmarks.networks.int8_tflite import quantize_tflite
from bnnedge.errors import BenchmarkError
from bnnedge.export.float_twin import float_twin
from bnnedge.export.graph import Graph
from bnnedge.export.passes import optimize
from bnnedge.export.passes.quantize_stem import Calibration
from bnnedge.export.runtimes.runtime import Images
from bnnedge.export.targets import TARGETS
from bnnedge.export.trace import trace
from bnnedge.export.verify_stem import QuantizedStem, StemReplay
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear
from bnnedge.layers.deploy import DeployedBinaryConv2d, DeployedLayer, deploy, deployed_layers
from bnnedge.methods import METHODS
from bnnedge.models.create import create_model

METHOD = "ste"
CALIBRATION_IMAGES = 8
SMALLEST_IMAGE = 8
INPUT_RANGE = (-16.0, 127 / 8)
"""Range of the input of an int8 stem, in which steps are 1/8, as in ``noise``: its codes hold the input exactly."""
STEM_RANGE = (-255 / 256, 255 / 256)
"""Range of the output of an int8 stem: its 255 steps are 1/128, a power of two."""


@dataclass(frozen=True)
class Int8StemFiles:
    """The binary network with an int8 stem."""

    onnx: bytes
    tflite: bytes
    stem: QuantizedStem


@dataclass(frozen=True)
class NetworkForms:
    """All forms of one topology. Files are held as their bytes."""

    name: str
    input_shape: tuple[int, int, int]
    binary: nn.Module
    """The network in its deploy form, which says what the binary files must compute."""
    twin: nn.Module
    """The float32 twin in PyTorch, batch norms folded, channels last. It says what the other twins must compute."""
    binary_onnx: bytes
    binary_tflite: bytes
    int8_stem: Int8StemFiles | None
    """The binary files with an int8 stem, if asked for."""
    float_onnx: bytes
    float_tflite: bytes
    int8_onnx: bytes | BenchmarkError
    int8_tflite: bytes | BenchmarkError
    """The int8 twin for LiteRT. An error in place of an int8 twin says why there is none."""
    int8_onnx_weight_bits: int
    """Bits of a weight in ``int8_onnx``, see ``int8_onnx.weight_bits``."""
    metadata: dict[str, Any]
    """Metadata of the binary files."""


def build(name: str, image_size: int, num_classes: int, channels: int = 3, int8_stem: bool = False) -> NetworkForms:
    """``name`` as in ``create_model``, in all its forms. Raises as ``create_model`` and ``export`` do."""
    if image_size < SMALLEST_IMAGE:
        raise BenchmarkError(f"expected an image size of at least {SMALLEST_IMAGE}, found {image_size}")
    shape = (channels, image_size, image_size)
    images = noise(CALIBRATION_IMAGES, shape, seed=1)
    torch.manual_seed(0)
    model = create_model(name, num_classes=num_classes, in_channels=channels, image_size=image_size)
    method = METHODS.load(METHOD)
    method(method.Options()).attach(model)
    settle(model, torch.from_numpy(images))
    metadata = {
        "model": name,
        "method": METHOD,
        "task": "classification",
        "outputs": num_classes,
        "input_shape": list(shape),
        "dataset": None,
    }
    deployed = deploy(model)
    traced = trace(deployed, torch.zeros(2, *shape))
    binary = _written(optimize(traced), metadata)
    files = _written(optimize(float_twin(traced)), {**metadata, "method": "float32 twin"})
    here = read_environment()
    bits = weight_bits(here.machine, here.cpu_flags)
    return NetworkForms(
        name=name,
        input_shape=shape,
        binary=deployed,
        twin=torch_twin(model),
        binary_onnx=binary["onnx"],
        binary_tflite=binary["lce"],
        int8_stem=_with_int8_stem(traced, metadata, images) if int8_stem else None,
        float_onnx=files["onnx"],
        float_tflite=files["lce"],
        int8_onnx=_bytes_or_reason(partial(quantize_onnx, bits=bits), files["onnx"], images),
        int8_tflite=_bytes_or_reason(quantize_tflite, files["lce"], images),
        int8_onnx_weight_bits=bits,
        metadata=metadata,
    )


@torch.no_grad()
def settle(model: nn.Module, images: Tensor) -> None:
    """Leave ``model`` in eval mode with exact arithmetic; ``images`` give its batch norms their statistics.

    Filters on the image become multiples of 1/64, binary weights and batch norm factors powers of two, shifts multiples
    of 1/128. Float filters further in become powers of two as well, +-: several in a row leave enough digits. The
    classifier, behind the last sign, stays as it is.
    """
    every = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    norms = [norm for norm in every if norm.affine and norm.track_running_stats]
    for module in model.modules():
        is_inner = isinstance(module, nn.Conv2d) and module.in_channels > images.shape[1]
        if isinstance(module, BinaryConv2d | BinaryLinear) or is_inner:
            assert isinstance(module.weight, Tensor)
            size = _power_of_two(module.weight.abs().mean())
            module.weight.copy_(torch.where(module.weight < 0, -size, size))
        elif isinstance(module, nn.Conv2d):
            for parameter in module.parameters():
                parameter.copy_((parameter * 64).round() / 64)
    for norm in norms:
        norm.reset_parameters()  # some models start with gains of nearly 0
        norm.momentum = None  # the plain average over all batches
    model.train()(images)
    model.eval()
    for norm in norms:
        assert norm.running_mean is not None and norm.running_var is not None
        factor = _power_of_two(norm.weight / (norm.running_var + norm.eps).sqrt())
        shift = norm.bias - norm.running_mean * factor
        norm.weight.copy_(factor)
        norm.bias.copy_((2 * (shift * 64).floor() + 1) / 128)
        norm.running_mean.zero_()
        norm.running_var.fill_(1)
        norm.eps = 0.0


def noise(count: int, shape: tuple[int, int, int], seed: int) -> Images:
    """``count`` images [C, H, W] of standard normal noise in steps of 1/8."""
    values = np.random.default_rng(seed).standard_normal((count, *shape), dtype=np.float32)
    steps: Images = (np.rint(values * 8) / 8).astype(np.float32)
    return steps


def _power_of_two(values: Tensor) -> Tensor:
    """The power of two nearest to each of ``values``, all above 0, by ratio."""
    return torch.exp2(torch.log2(values).round())


def torch_twin(model: nn.Module) -> nn.Module:
    """The float32 twin as PyTorch would deploy it without a compiler."""
    twin = deploy(model)
    for path, layer in deployed_layers(twin).items():
        twin.set_submodule(path, _plain(layer))
    with suppress(fx.proxy.TraceError):  # the model's own control flow; its batch norms stay
        twin = fuse(twin.eval())
    return twin.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _plain(layer: DeployedLayer) -> nn.Module:
    outputs = len(layer.weight)
    weight = layer.weight * layer.scale.view(-1, *[1] * (layer.weight.dim() - 1))
    plain: nn.Conv2d | nn.Linear
    if isinstance(layer, DeployedBinaryConv2d):
        _, group_channels, height, width = layer.weight.shape
        plain = nn.Conv2d(
            group_channels * layer.groups,
            outputs,
            (height, width),
            (layer.stride[0], layer.stride[-1]),
            (layer.padding[0], layer.padding[-1]),
            (layer.dilation[0], layer.dilation[-1]),
            layer.groups,
        )
    else:
        plain = nn.Linear(layer.weight.shape[1], outputs)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias = nn.Parameter(layer.bias.clone(), requires_grad=False)
    return plain


def _written(graph: Graph, metadata: dict[str, Any]) -> dict[str, bytes]:
    graph = replace(graph, metadata=metadata)
    return {name: TARGETS.load(name)().write(graph) for name in TARGETS}


def _with_int8_stem(traced: Graph, metadata: dict[str, Any], images: Images) -> Int8StemFiles:
    graph = optimize(traced, Calibration(images, INPUT_RANGE, STEM_RANGE))
    stem = QuantizedStem.of(graph)
    assert stem is not None
    files = _written(graph, metadata)
    return Int8StemFiles(files["onnx"], files["lce"], stem)


def _bytes_or_reason(quantize: Callable[[bytes, Images], bytes], data: bytes, images: Images) -> bytes | BenchmarkError:
    try:
        return quantize(data, images)
    except BenchmarkError as error:
        return error


def run_torch_behind(network: NetworkForms, codes: NDArray[np.int8], images: Images) -> Images:
    """Outputs of the binary network when its int8 stem gives ``codes``."""
    assert network.int8_stem is not None
    stem = network.int8_stem.stem
    model, batch = copy.deepcopy(network.binary).double(), torch.from_numpy(images).double()
    with torch.no_grad(), StemReplay(stem.values(codes), stem.float_values(images)):
        return model(batch).float().numpy()  # type: ignore[no-any-return]


def run_torch(model: nn.Module, images: Images) -> Images:
    """Outputs [N, ...] of ``model``."""
    with torch.inference_mode():
        output: Images = model(torch.from_numpy(images)).numpy()
    return output
