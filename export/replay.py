"""The checkpoint in float64 with the file's signs forced into its binary layers, and what explains a difference.

Rounding is bounded by ``8 sqrt(n) 2^-24 M``: n float32 operations on the way whose errors are independent and
mean-free stay below ``lambda sqrt(n) u`` relative to the operands with probability 1 - 2 exp(-lambda^2 / 2), here
1 - 2e-14 (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis", theorem 2.4). n is the sum
of ``Node.summands`` over the whole network; M is the size of the operands, see ``magnitudes.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnnedge.binarization.sign import sign
from bnnedge.errors import VerificationError
from bnnedge.export.graph import BinaryConv2d, Graph
from bnnedge.export.magnitudes import Magnitudes
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
def watched(model: nn.Module, calls: Sequence[str], look: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While this holds, ``look`` gets the node's name and the pre-activation of every binary layer before it runs.

    ``calls`` are those of the graph. Raises ``VerificationError`` on leaving if the model made other calls.
    """
    counted = Calls(calls)

    def hook(module: nn.Module, x: tuple[Any, ...]) -> None:
        assert isinstance(module, DeployedLayer)
        look(counted.next(), module.preactivation(x[0]))

    handles = [layer.register_forward_pre_hook(hook) for layer in deployed_layers(model).values()]
    try:
        yield
        counted.check_all_made()
    finally:
        for handle in handles:
            handle.remove()


class Calls:
    """Joins the calls of binary layers, as the model makes them, to the nodes of the graph: the k-th to the k-th.

    A layer's name would not do, since a module may have several, and may be called several times.
    """

    def __init__(self, nodes: Sequence[str]) -> None:
        self._nodes, self._made = nodes, 0

    def next(self) -> str:
        """The node of the call that is made now."""
        self._made += 1
        if self._made > len(self._nodes):
            raise VerificationError(
                f"the network calls its binary layers more than the {len(self._nodes)} times that were exported; its "
                "forward pass must not depend on the values of its input"
            )
        return self._nodes[self._made - 1]

    def check_all_made(self) -> None:
        """Raise ``VerificationError`` if a call is missing."""
        if self._made < len(self._nodes):
            raise VerificationError(
                f"{self._nodes[self._made]}: the layer was exported, but the network did not call it"
            )


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
        self.compared: set[str] = set()
        self.tolerances: dict[str, float] = {}
        """What rounding explains of every output's error, by the output's name."""

    @torch.no_grad()
    def run(self, exact: nn.Module, inputs: Mapping[str, Images], behind_stem: StemReplay | None) -> Outputs:
        """The outputs of ``exact``, the checkpoint in float64, as far as the layers are equal."""
        missing = [name for name in self.nodes if name not in self.file_signs]
        if missing:
            raise VerificationError(f"{missing[0]}: the file holds no such binary layer")
        layers = deployed_layers(exact).values()
        calls = Calls(self.graph.calls)
        for layer in layers:
            layer.forward = self._forward(layer, calls)  # type: ignore[method-assign, assignment]
        try:
            with behind_stem or nullcontext(), Magnitudes() as magnitudes:
                self.magnitudes = magnitudes
                result = exact(*(torch.from_numpy(values).double() for values in inputs.values()))
        finally:
            for layer in layers:
                del layer.forward  # uncovers the method of the class
        calls.check_all_made()
        if skipped := [name for name in self.nodes if name not in self.compared]:
            raise VerificationError(f"{skipped[0]}: the layer of the file was compared with none of the checkpoint's")
        outputs = dict(zip(self.graph.outputs, output_tensors(result), strict=True))
        self.tolerances = {name: self.bound * magnitudes.largest(output) for name, output in outputs.items()}
        return {name: output.numpy() for name, output in outputs.items()}

    def _forward(self, layer: DeployedLayer, calls: Calls) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            node = self.nodes.get(calls.next())
            if node is None:  # computed in float (W1A32), or nothing reads the result
                return layer.transform(layer.integers(layer.binarize(x)), x)
            self.first = self.first or node.name
            file_signs = self.file_signs[node.name]
            forced = torch.from_numpy(file_signs).double().view_as(x)
            value = layer.preactivation(x)
            self._compare_signs(node.name, forced, value, self.bound * self.magnitudes.largest(value))
            sums = layer.integers(forced)
            self._compare_integers(node, layer, file_signs, sums)
            return layer.transform(sums, x)

        return forward

    def _compare_signs(self, name: str, file_signs: Tensor, value: Tensor, explained: float) -> None:
        turned = value[file_signs != sign(value)].abs()
        self.signs += value.numel()
        self.flips += turned.numel()
        if turned.numel():
            distance = float(turned.max())
            self.max_flip_distance = max(self.max_flip_distance, distance)
            if not distance <= explained:
                raise VerificationError(
                    f"{name}: the file's sign of {distance:.3g} is wrong in the layer's input "
                    f"({turned.numel()} of {value.numel()} signs differ); rounding explains {explained:.3g}"
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
        self.compared.add(node.name)
