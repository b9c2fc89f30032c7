"""Binary layers whose input has one sign, so that its signs say nothing."""

from __future__ import annotations

from torch import nn

from bnnedge.layers.binary_layers import binary_layers
from bnnedge.layers.bounds import Bounds
from bnnedge.layers.flow import Flow

_WHAT_TO_DO = (
    "move the activation behind the next batch normalization, replace it by Hardtanh or PReLU, or leave it out"
)


def constant_signs(model: nn.Module, flow: Flow) -> list[str]:
    """A sentence for the binary layers of ``model`` that see constant signs, by the flow of data; empty if none does.

    A layer sees them where its method takes the sign of its input at 0 and the operations before it leave no value, or
    none but values, below 0. Methods that subtract the sample's mean first, or take the input as it is, see none.
    """
    always, at_start = [], []
    for name, layer in binary_layers(model).items():
        bounds = flow.input_bounds(name)
        if layer.input_mode == "sign" and name in flow.bounds and bounds.one_sign:
            (at_start if bounds.learnt else always).append(_sentence(name, bounds))
    sentences = []
    if always:
        sentences.append(f"signs of inputs are constant, and the layers learn nothing from them: {'; '.join(always)}")
    if at_start:
        sentences.append(
            f"signs of inputs are constant until training has moved the parameters before them: {'; '.join(at_start)}"
        )
    return [f"{' '.join([f'{s}.' for s in sentences])} To mend it, {_WHAT_TO_DO}"] if sentences else []


def _sentence(name: str, bounds: Bounds) -> str:
    sign, range_ = ("+1", "never negative") if bounds.low >= 0 else ("-1", "always negative")
    return f"all signs of binary layer {name!r} are {sign}, as {bounds.source or 'a constant'} is {range_}"
