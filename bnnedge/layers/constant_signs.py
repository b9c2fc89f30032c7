"""Binary layers whose input has one sign, so that its signs say nothing."""

from __future__ import annotations

import warnings

from torch import nn

from bnnedge.errors import BnnedgeWarning
from bnnedge.layers.binary_layers import binary_layers
from bnnedge.layers.bounds import Bounds
from bnnedge.layers.find_flow import find_flow
from bnnedge.layers.flow import Flow
from bnnedge.layers.run_flow import Example

_WHAT_TO_DO = (
    "move the activation behind the next batch normalization, replace it by Hardtanh or PReLU, or leave it out"
)


def constant_signs(model: nn.Module, flow: Flow) -> list[str]:
    """Sentences about the binary layers of ``model`` that see constant signs, by the flow of data; none if none does.

    A layer sees them where its method takes the sign of its input at 0, and the operations before it leave no value
    below 0, or none but such values. Methods that subtract the sample's mean first, or take the input as it is, see
    none. Where the present values of parameters alone make the signs constant, as those of a learnt shift that starts
    at 0, the sentence says so.
    """
    always: list[str] = []
    at_start: list[str] = []
    for name, layer in binary_layers(model).items():
        bounds = flow.input_bounds(name)
        if layer.input_mode == "sign" and name in flow.bounds and bounds.one_sign:
            (at_start if bounds.learnt else always).append(_described(name, bounds))
    sentences = []
    if always:
        sentences.append(f"binary layers with inputs of constant sign, which tells them nothing: {'; '.join(always)}")
    if at_start:
        sentences.append(
            "binary layers with inputs of constant sign until training has moved the parameters before them: "
            + "; ".join(at_start)
        )
    return [f"{sentence}; {_WHAT_TO_DO}" for sentence in sentences]


def warn_of_constant_signs(model: nn.Module, example_inputs: Example) -> None:
    """Give a ``BnnedgeWarning`` for each sentence of ``constant_signs``; ``model`` has its method attached."""
    flow, _ = find_flow(model, example_inputs)
    for sentence in [] if flow is None else constant_signs(model, flow):
        warnings.warn(sentence, BnnedgeWarning, stacklevel=2)


def _described(name: str, bounds: Bounds) -> str:
    sign, values = ("+1", "never negative") if bounds.low >= 0 else ("-1", "always negative")
    return f"{name} ({values} behind {bounds.source or 'a constant'}, so that all signs are {sign})"
