"""Does the file compute what the checkpoint computes? Bits exactly, floats up to rounding.

The file runs in its runtime with the inputs of its binary layers exposed. The checkpoint is then replayed in float64,
each binary layer taking the *file's* signs instead of its own. So an error is seen in the layer that makes it, not in
everything after it:

1. the runtime's own integer sums for those signs equal the checkpoint's, everywhere, exactly;
2. where a sign differs from the one that the replay would have taken, the replay's value lies within rounding of 0;
3. every output differs by rounding only, from the replay's, and from that of the checkpoint running freely in float32
   for every image in which both have the same signs everywhere.

A sign that rounding turned may change the answer for its image, most of all in a network that has learnt little;
``agreement`` says how often. Nothing is wrong with the file then.

An int8 stem computes something else than the checkpoint's by design. Its codes are compared with its definition, and
the checkpoint, also the one that runs freely, goes on behind it with the file's values (``verify_stem.py``). What that
changed is counted where the first signs are taken.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bnnedge.binarization.sign import sign
from bnnedge.errors import VerificationError
from bnnedge.export.constant_signs import constant_in
from bnnedge.export.graph import Graph
from bnnedge.export.replay import Replay, Signs, outputs_of, watched
from bnnedge.export.runtimes.runtime import Images, Outputs, VerifyingRuntime
from bnnedge.export.trace.signature import named_inputs
from bnnedge.export.verify_stem import QuantizedStem, StemReplay

Agreement = Callable[[NDArray[np.float32], NDArray[np.float32]], float]
"""How far the file's output (first) and the checkpoint's [N, ...] give the same answer, in [0, 1]."""


def same_arg_max(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Share of positions with the same arg-max over axis 1: the class of [N, C], the class of every pixel of a map."""
    rows = (*found.shape[:2], -1)  # [N, C, positions], also of an output [N] or [N, C]
    return float((found.reshape(rows).argmax(1) == expected.reshape(rows).argmax(1)).mean())


@dataclass(frozen=True)
class StemChange:
    """How many of the first signs the file's int8 stem changes, against the checkpoint's own stem."""

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
    """Number of integer sums that were compared; all were equal."""
    flips: int
    """Number of signs that rounding turned."""
    signs: int
    """Number of signs that were compared."""
    max_flip_distance: float
    """Largest |pre-activation| at a sign that rounding turned."""
    max_output_difference: float
    """Largest difference of any output between file and checkpoint, each running freely in float32."""
    agreement: float
    """The least agreement of any output, each network running freely; in [0, 1]."""
    constant_signs: Mapping[str, int] = field(default_factory=dict)
    """The sign of each binary layer all of whose inputs had it, by the layer's name."""
    stem: StemChange | None = None
    """What an int8 stem changed; None for a float stem."""

    def __str__(self) -> str:
        flips = f"{self.flips} of {self.signs:,} signs turned by rounding"
        if self.flips:
            flips += f" (at most {self.max_flip_distance:.1e} from zero)"
        return (
            f"verified in {self.runtime} on {self.images} images: {self.integers:,} integers of "
            f"{self.binary_layers} binary layers equal; {flips}; "
            f"max |output difference| {self.max_output_difference:.2e}; agreement {self.agreement:.2%}"
        )


def verify(
    model: nn.Module,
    graph: Graph,
    data: bytes,
    runtime: type[VerifyingRuntime],
    images: Images | tuple[Images, ...] | Mapping[str, Images],
    agreement: Agreement | Mapping[str, Agreement] = same_arg_max,
) -> Verification:
    """Compare file ``data`` (written from ``graph``) with the deployed ``model``, which stays as it is.

    Args:
        images: the inputs [N, ...] in one of the forms of ``named_inputs``.
        agreement: for every output, or one for each by its name.

    Raises ``VerificationError`` naming the first layer that differs by more than rounding.
    """
    arrays = named_inputs(model, images).values()
    if len(arrays) != len(graph.inputs):
        raise VerificationError(f"images are needed for the inputs {', '.join(graph.inputs)}, found {len(arrays)}")
    inputs = dict(zip(graph.inputs, arrays, strict=True))
    outputs, signs = runtime.tap(data, inputs)
    found = dict(zip(graph.outputs, outputs.values(), strict=True))
    exact = copy.deepcopy(model).double()
    stem = QuantizedStem.of(graph)
    behind_stem = None
    if stem is not None:
        entered, left = runtime.codes(data, inputs[graph.input], stem.tensors)
        stem.check(inputs[graph.input], entered, left)
        behind_stem = StemReplay(stem.values(left), stem.float_values(inputs[graph.input]))
    replay = Replay(graph, data, runtime, signs)
    _compare_replayed(found, replay.run(exact, inputs, behind_stem), replay.tolerances)
    free, has_same_signs = _run_freely(model, graph, inputs, signs, behind_stem)
    agreements = []
    for name, tolerance in replay.tolerances.items():
        unexplained = float(np.abs(found[name] - free[name])[has_same_signs].max(initial=0.0))
        if not unexplained <= 2 * tolerance:
            raise VerificationError(
                f"{_called(name, found)} differs by {unexplained:.3g} from the checkpoint's for an image whose signs "
                f"are equal; rounding explains {2 * tolerance:.3g}"
            )
        agrees = agreement[name] if isinstance(agreement, Mapping) else agreement
        agreements.append(agrees(found[name], free[name]))
    return Verification(
        runtime=runtime.name,
        images=len(has_same_signs),
        binary_layers=len(signs),
        integers=replay.integers,
        flips=replay.flips,
        signs=replay.signs,
        max_flip_distance=replay.max_flip_distance,
        max_output_difference=max(float(np.abs(found[name] - free[name]).max()) for name in found),
        agreement=min(agreements),
        constant_signs=constant_in(signs),
        stem=_stem_change(exact, graph, replay.first, signs, inputs) if stem and replay.first else None,
    )


def _called(output: str, found: Outputs) -> str:
    return "the output" if len(found) == 1 else f"output {output}"


def _compare_replayed(found: Outputs, replayed: Outputs, tolerances: Mapping[str, float]) -> None:
    """Raise ``VerificationError`` where rounding does not explain an output's error."""
    for name, expected in replayed.items():
        error = float(np.abs(found[name] - expected).max())
        if not error <= tolerances[name]:
            raise VerificationError(
                f"{_called(name, found)} differs by {error:.3g} from the checkpoint's for equal signs; rounding "
                f"explains {tolerances[name]:.3g}"
            )


@torch.no_grad()
def _run_freely(
    model: nn.Module, graph: Graph, inputs: Mapping[str, Images], signs: Signs, behind_stem: StemReplay | None
) -> tuple[Outputs, NDArray[np.bool_]]:
    """The checkpoint's own outputs [N, ...], and for which images all signs that it takes are the file's [N]."""
    batch = len(next(iter(inputs.values())))
    same = torch.ones(batch, dtype=torch.bool)

    def compare(name: str, value: Tensor) -> None:
        if name in signs:  # else the layer is computed in float (W1A32)
            own = sign(value)
            equal = (torch.from_numpy(signs[name]).view_as(own) == own).reshape(batch, -1)
            same.logical_and_(equal.all(dim=1))

    with watched(model, graph.calls, compare), behind_stem.again() if behind_stem else nullcontext():
        outputs = outputs_of(model, graph, inputs, torch.float32)
    return outputs, same.numpy()


@torch.no_grad()
def _stem_change(exact: nn.Module, graph: Graph, first: str, signs: Signs, inputs: Mapping[str, Images]) -> StemChange:
    """How many of the signs that enter layer ``first`` the float64 checkpoint with its own stem takes otherwise."""
    own: dict[str, Tensor] = {}

    def take(name: str, value: Tensor) -> None:
        own[name] = sign(value)

    with watched(exact, graph.calls, take):
        exact(*(torch.from_numpy(values).double() for values in inputs.values()))
    found = torch.from_numpy(signs[first]).double().view_as(own[first])
    return StemChange(first, int((found != own[first]).sum()), found.numel())
