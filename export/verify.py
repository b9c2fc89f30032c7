"""Does the file compute what the checkpoint computes? Bits exactly, floats up to rounding.

The file runs in its runtime with the inputs of its binary layers exposed. The checkpoint is then replayed in float64,
each binary layer taking the *file's* signs instead of its own. So an error is seen in the layer that makes it, not in
everything after it:

1. the runtime's own integer sums for those signs equal the checkpoint's, everywhere, exactly;
2. where a sign differs from the one that the replay would have taken, the replay's value lies within rounding of 0;
3. the outputs differ by rounding only, from the replay's, and from those of the checkpoint running freely in float32
   for every image in which both have the same signs everywhere.

A sign that rounding turned may change the arg-max of its image, most of all in a network that has learnt little;
``agreement`` says how often. Nothing is wrong with the file then.

An int8 stem computes something else than the checkpoint's by design. Its codes are compared with its definition, and
the checkpoint, also the one that runs freely, goes on behind it with the file's values (``verify_stem.py``). What that
changed is counted where the first signs are taken.

Rounding is bounded by ``8 sqrt(n) 2^-24 max|x|``: n float32 operations on the way whose errors are independent and
mean-free stay below ``lambda sqrt(n) u`` relative to the operands with probability 1 - 2 exp(-lambda^2 / 2), here
1 - 2e-14 (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis", theorem 2.4). n counts the
summands of every float operation of the network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnnedge.binarization.sign import sign
from bnnedge.errors import VerificationError
from bnnedge.export.graph import AvgPool2d, BinaryConv2d, Conv2d, Graph, Linear, Mean
from bnnedge.export.runtimes.runtime import VerifyingRuntime
from bnnedge.export.verify_stem import QuantizedStem, StemReplay
from bnnedge.layers.deploy import DeployedLayer, deployed_layers


@dataclass(frozen=True)
class StemChange:
    """The first signs with the file's int8 stem against those with the checkpoint's own."""

    layer: str
    """The first binary layer."""
    changed: int
    signs: int

    @property
    def share(self) -> float:
        return self.changed / self.signs


@dataclass(frozen=True)
class Verification:
    """What was compared and what was found; made only for a file that passed."""

    runtime: str
    images: int
    binary_layers: int
    integers: int
    """Integer sums compared, all equal."""
    flips: int
    """Signs that rounding turned."""
    signs: int
    """Signs compared."""
    max_flip_distance: float
    """Largest |pre-activation| at such a sign."""
    max_logit_difference: float
    """Between file and checkpoint, each running freely in float32."""
    agreement: float
    """Share of images with the same arg-max, each running freely."""
    stem: StemChange | None = None
    """What an int8 stem changed; None for a float stem."""

    def __str__(self) -> str:
        flips = f"{self.flips} of {self.signs:,} signs turned by rounding"
        if self.flips:
            flips += f" (at most {self.max_flip_distance:.1e} from zero)"
        return (
            f"verified in {self.runtime} on {self.images} images: {self.integers:,} integers of "
            f"{self.binary_layers} binary layers equal; {flips}; "
            f"max |logit difference| {self.max_logit_difference:.2e}; arg-max agreement {self.agreement:.2%}"
        )


def rounding_bound(graph: Graph) -> float:
    """``8 sqrt(n) 2^-24`` with n as in the module docstring."""
    n = 0
    for node in graph.nodes:
        if isinstance(node, Conv2d | Linear | BinaryConv2d):
            # A binary layer's sum is exact, but Larq Compute Engine rounds K multiplier when it folds the bias.
            n += int(np.prod(node.weight.shape[1:]))
        elif isinstance(node, Mean):
            n += math.prod(graph.tensors[node.inputs[0]].shape[axis] for axis in node.axes)
        elif isinstance(node, AvgPool2d):
            n += math.prod(node.kernel)
        else:
            n += 2
    return 8 * math.sqrt(n) * 2**-24


def verify(
    model: nn.Module, graph: Graph, data: bytes, runtime: type[VerifyingRuntime], images: NDArray[np.float32]
) -> Verification:
    """Compare file ``data`` (written from ``graph``) with the deployed ``model`` on ``images`` [N, C, H, W].

    Raises ``VerificationError`` naming the first layer that differs by more than rounding.
    """
    output, signs = runtime.tap(data, images)
    replay = _Replay(graph, data, runtime, signs)
    stem = QuantizedStem.of(graph)
    behind_stem = None
    if stem is not None:
        entered, left = runtime.codes(data, images, stem.tensors)
        stem.check(images, entered, left)
        behind_stem = StemReplay(stem.values(left), stem.float_values(images))
    replayed = replay.run(model, images, behind_stem)
    tolerance = rounding_bound(graph) * float(np.abs(replayed).max())
    error = float(np.abs(output - replayed).max())
    if not error <= tolerance:
        raise VerificationError(
            f"the output differs by {error:.3g} from the checkpoint's for equal signs; rounding explains "
            f"{tolerance:.3g}"
        )
    free, has_same_signs = _run_freely(model, images, signs, behind_stem)
    difference = np.abs(output - free)
    unexplained = float(difference[has_same_signs].max(initial=0.0))
    if not unexplained <= 2 * tolerance:
        raise VerificationError(
            f"the output differs by {unexplained:.3g} from the checkpoint's for an image whose signs are equal; "
            f"rounding explains {2 * tolerance:.3g}"
        )
    rows = (*output.shape[:2], -1)  # [N, C, positions], also of an output [N] or [N, C]
    agreement = float((output.reshape(rows).argmax(1) == free.reshape(rows).argmax(1)).mean())
    return Verification(
        runtime=runtime.name,
        images=len(images),
        binary_layers=len(signs),
        integers=replay.integers,
        flips=replay.flips,
        signs=replay.signs,
        max_flip_distance=replay.max_flip_distance,
        max_logit_difference=float(difference.max()),
        agreement=agreement,
        stem=_stem_change(model, replay.first, signs, images) if stem and replay.first else None,
    )


@torch.no_grad()
def _run_freely(
    model: nn.Module, images: NDArray[np.float32], signs: dict[str, NDArray[np.int8]], behind_stem: StemReplay | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The checkpoint's own output [N, ...], and for which images all signs that it takes are the file's [N]."""
    model = copy.deepcopy(model)
    same = torch.ones(len(images), dtype=torch.bool)
    for name, layer in deployed_layers(model).items():
        names = _names_of_calls(name)

        def compare(layer: nn.Module, x: tuple[Tensor], names: Iterator[str] = names) -> None:
            assert isinstance(layer, DeployedLayer)
            found = signs.get(next(names))
            if found is not None:  # else it is computed in float (W1A32)
                own = sign(layer.preactivation(x[0]))
                equal = (torch.from_numpy(found).view_as(own) == own).reshape(len(images), -1)
                same.logical_and_(equal.all(dim=1))

        layer.register_forward_pre_hook(compare)
    batch = torch.from_numpy(images)
    with behind_stem.again() if behind_stem else nullcontext():
        output = model(batch)
    return output.numpy(), same.numpy()


def _names_of_calls(layer: str) -> Iterator[str]:
    """What the nodes of a layer's first, second, .. call are named."""
    return (layer if call == 1 else f"{layer}#{call}" for call in count(1))


def _stem_change(
    model: nn.Module, first: str, signs: dict[str, NDArray[np.int8]], images: NDArray[np.float32]
) -> StemChange:
    model = copy.deepcopy(model).double()
    layer = deployed_layers(model)[first.partition("#")[0]]
    own: list[Tensor] = []
    layer.register_forward_pre_hook(lambda layer, x: own.append(sign(layer.preactivation(x[0]))))
    with torch.no_grad():
        model(torch.from_numpy(images).double())
    found = torch.from_numpy(signs[first]).double().view_as(own[0])
    return StemChange(first, int((found != own[0]).sum()), found.numel())


class _Replay:
    """The checkpoint in float64 with the file's signs forced into every binary layer."""

    def __init__(
        self, graph: Graph, data: bytes, runtime: type[VerifyingRuntime], signs: dict[str, NDArray[np.int8]]
    ) -> None:
        self.nodes = {node.name: node for node in graph.binary_nodes()}
        self.bound = rounding_bound(graph)
        self.data, self.runtime, self.file_signs = data, runtime, signs
        self.integers = self.flips = self.signs = 0
        self.max_flip_distance = 0.0
        self.first = ""
        """The binary layer that ran first."""

    @torch.no_grad()
    def run(self, model: nn.Module, images: NDArray[np.float32], behind_stem: StemReplay | None) -> NDArray[np.float64]:
        missing = [name for name in self.nodes if name not in self.file_signs]
        if missing:
            raise VerificationError(f"{missing[0]}: the file holds no such binary layer")
        model = copy.deepcopy(model).double()
        for name, layer in deployed_layers(model).items():
            layer.forward = self._forward(name, layer)  # type: ignore[method-assign, assignment]
        batch = torch.from_numpy(images).double()
        with behind_stem or nullcontext():
            return model(batch).numpy()  # type: ignore[no-any-return]

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
