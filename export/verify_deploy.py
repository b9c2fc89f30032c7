"""Does the deploy form, which alone is exported, compute what the user's own model computes in eval mode?

Both run in float64 on the same images. What enters the k-th call of a binary layer must be equal, up to the rounding of
float64, for every image whose signs were equal in all calls before; so must the outputs. A sign that rounding turns
here, at a value that is zero but for rounding, takes its image out of the comparison behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnnedge.binarization.sign import sign
from bnnedge.errors import VerificationError
from bnnedge.export.runtimes.runtime import Images
from bnnedge.export.trace.signature import output_tensors
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear
from bnnedge.layers.deploy import DeployedLayer, deploy, plain_copy

TOLERANCE = 1e-9
"""Largest difference relative to the largest value: float64 leaves 2^-53 = 1e-16 for each of at most some million
operations on the way, and networks that stretch errors a hundredfold."""
MOST_IMAGES = 16


@torch.no_grad()
def verify_deploy_form(model: nn.Module, inputs: Mapping[str, Images]) -> None:
    """Compare the deploy form of ``model`` with ``model`` itself, on the first images of ``inputs``.

    Raises ``VerificationError`` naming the first binary layer whose input differs.
    """
    few = [torch.from_numpy(np.array(values[:MOST_IMAGES])).double() for values in inputs.values()]
    own_calls, own_outputs = _run(plain_copy(model, torch.float64), few)
    calls, outputs = _run(deploy(model, torch.float64), few)
    if len(own_calls) != len(calls):
        raise VerificationError(
            f"the model calls its binary layers {len(own_calls)} times, its deploy form {len(calls)} times"
        )
    same = torch.ones(len(few[0]), dtype=torch.bool)
    where = "its input"
    for (_, _, own), (name, layer, found) in zip(own_calls, calls, strict=True):
        _compare(own, found, same, f"what enters layer {name}", where)
        own_signs, signs = (sign(layer.preactivation(x)) for x in (own, found))
        same &= (own_signs == signs).reshape(len(same), -1).all(dim=1)
        where = f"layer {name}"
    for own, found in zip(own_outputs, outputs, strict=True):
        _compare(own, found, same, "an output", where)


def _run(model: nn.Module, inputs: list[Tensor]) -> tuple[list[tuple[str, Any, Tensor]], list[Tensor]]:
    """Name, layer and input of every call of a binary layer, in order, and the outputs."""
    calls: list[tuple[str, Any, Tensor]] = []
    for name, layer in model.named_modules():
        if isinstance(layer, BinaryConv2d | BinaryLinear | DeployedLayer):
            layer.register_forward_pre_hook(lambda m, x, name=name: calls.append((name, m, x[0].detach().clone())))
    return calls, [output.detach() for output in output_tensors(model(*inputs))]


def _compare(own: Tensor, found: Tensor, same: Tensor, what: str, where: str) -> None:
    if own.shape != found.shape:
        raise VerificationError(f"{what} has shape {tuple(found.shape)}, in the model itself {tuple(own.shape)}")
    difference = float((own - found)[same].abs().max()) if bool(same.any()) else 0.0
    largest = float(found.abs().max())
    if not difference <= TOLERANCE * largest:
        raise VerificationError(
            f"{what} differs by {difference:.3g} from the model's own in eval mode, where the largest value is "
            f"{largest:.3g}; something between {where} and there has no part in the exported form"
        )
