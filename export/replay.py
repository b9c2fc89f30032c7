"""The checkpoint in float64 with the file's signs forced into its binary layers, and what explains a difference.

Rounding is bounded by ``8 sqrt(n) 2^-24 max|x|``: n float32 operations on the way whose errors are independent and
mean-free stay below ``lambda sqrt(n) u`` relative to the operands with probability 1 - 2 exp(-lambda^2 / 2), here
1 - 2e-14 (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis", theorem 2.4). n is the sum
of ``Node.summands`` over the whole network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnnedge.binarization.sign import sign
from bnnedge.errors import VerificationError
from bnnedge.export.graph import BinaryConv2d, Graph
from bnnedge.export.runtimes.runtime import Images, Outputs, VerifyingRuntime
from bnnedge.export.trace.signature import output_tensors
from bnnedge.export.verify_stem import StemReplay
from bnnedge.layers.deploy import DeployedLayer, deployed_layers

Signs = dict[str, NDArray[np.int8]]
"""The signs {-1, +1} that enter each binary layer, by the layer's name."""
UNIT_ROUNDOFF = 2.0**-24
LAMBDA = 8.0


def rounding_bound(graph: Graph) -> float:
    """``8 sqrt(n) 2^-24``, n the operands of all float32 operations, as in the module docstring."""
    n = sum(node.summands(graph.shapes(node)) for node in graph.nodes)
    return LAMBDA * math.sqrt(n) * UNIT_ROUNDOFF


def outputs_of(model: nn.Module, graph: Graph, inputs: Mapping[str, Images], dtype: torch.dtype) -> Outputs:
    """What ``model`` returns for ``inputs``, by the names that the file has."""
    result = model(*(torch.from_numpy(values).to(dtype) for values in inputs.values()))
    return {name: values.numpy() for name, values in zip(graph.outputs, output_tensors(result), strict=True)}


@contextmanager
def watched(model: nn.Module, look: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While this holds, ``look`` gets the name and the pre-activation of every binary layer before it runs."""
    handles = []
    for layer, module in deployed_layers(model).items():
        names = _names_of_calls(layer)

        def hook(module: nn.Module, x: tuple[Any, ...], names: Iterator[str] = names) -> None:
            assert isinstance(module, DeployedLayer)
            look(next(names), module.preactivation(x[0]))

        handles.append(module.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _names_of_calls(layer: str) -> Iterator[str]:
    """The names of the graph nodes of a layer's first, second, ... call."""
    return (layer if call == 1 else f"{layer}#{call}" for call in count(1))


class Replay:
    """The checkpoint in float64 with the file's signs forced into every binary layer."""

    def __init__(self, graph: Graph, data: bytes, runtime: type[VerifyingRuntime], signs: Signs) -> None:
        self.graph = graph
        self.nodes = {node.name: node for node in graph.binary_nodes()}
        self.bound = rounding_bound(graph)
        self.data, self.runtime, self.file_signs = data, runtime, signs
        self.integers = self.flips = self.signs = 0
        self.max_flip_distance = 0.0
        self.first = ""
        """The binary layer that ran first."""

    @torch.no_grad()
    def run(self, exact: nn.Module, inputs: Mapping[str, Images], behind_stem: StemReplay | None) -> Outputs:
        """The outputs of ``exact``, the checkpoint in float64, as far as the layers are equal."""
        missing = [name for name in self.nodes if name not in self.file_signs]
        if missing:
            raise VerificationError(f"{missing[0]}: the file holds no such binary layer")
        layers = deployed_layers(exact)
        for name, layer in layers.items():
            layer.forward = self._forward(name, layer)  # type: ignore[method-assign, assignment]
        try:
            with behind_stem or nullcontext():
                return outputs_of(exact, self.graph, inputs, torch.float64)
        finally:
            for layer in layers.values():
                del layer.forward  # uncovers the method of the class

    def _forward(self, name: str, layer: DeployedLayer) -> Callable[[Tensor], Tensor]:
        names = _names_of_calls(name)

        def forward(x: Tensor) -> Tensor:
            node = self.nodes.get(next(names))
            if node is None:  # computed in float (W1A32)
                return layer.transform(layer.integers(layer.binarize(x)), x)
            self.first = self.first or node.name
            file_signs = self.file_signs[node.name]
            forced = torch.from_numpy(file_signs).double().view_as(x)
            self._compare_signs(node.name, forced, layer.preactivation(x), float(x.abs().max()))
            sums = layer.integers(forced)
            self._compare_integers(node, layer, file_signs, sums)
            return layer.transform(sums, x)

        return forward

    def _compare_signs(self, name: str, file_signs: Tensor, value: Tensor, largest: float) -> None:
        turned = value[file_signs != sign(value)].abs()
        self.signs += value.numel()
        self.flips += turned.numel()
        if turned.numel():
            distance = float(turned.max())
            self.max_flip_distance = max(self.max_flip_distance, distance)
            if not distance <= self.bound * largest:
                raise VerificationError(
                    f"{name}: the file's sign of {distance:.3g} is wrong in the layer's input "
                    f"({turned.numel()} of {value.numel()} signs differ); rounding explains {self.bound * largest:.3g}"
                )

    def _compare_integers(
        self, node: BinaryConv2d, layer: DeployedLayer, file_signs: NDArray[np.int8], sums: Tensor
    ) -> None:
        weight = layer.weight.numpy().reshape(node.weight.shape)
        negated = np.any(node.weight != weight, axis=(1, 2, 3))
        expected = sums.numpy().reshape(*sums.shape, *[1] * (4 - sums.dim()))
        expected = np.where(negated[:, None, None], -expected, expected)
        found = self.runtime.integers(self.data, node.name, file_signs)
        different = int(np.count_nonzero(found != expected))
        if found.shape != expected.shape or different:
            raise VerificationError(
                f"{node.name}: {different} of {expected.size} integer sums of the file differ from the checkpoint's"
            )
        self.integers += expected.size
