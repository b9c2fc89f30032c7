"""Binary layers whose input has the same sign everywhere: they learn nothing, and pass nothing on."""

from __future__ import annotations

from torch import nn

from bnnedge.layers.binary_layers import binary_layers
from bnnedge.layers.data_flow.bounds import Bounds
from bnnedge.layers.data_flow.flow import Flow


def constant_signs(model: nn.Module, flow: Flow) -> list[str]:
    """The warnings about the binary layers of ``model`` that see constant signs, by the flow of data.

    A layer sees them where its method takes the sign of its input at 0, and the operations before it leave no value
    below 0, or none but such values. Methods that subtract the sample's mean first, or take the input as it is, see
    none. Where the present values of parameters alone make the signs constant, as those of a learnt shift that starts
    at 0, the warning says so.
    """
    return [
        constant_signs_text(name, 1 if bounds.low >= 0 else -1, _cause(bounds))
        for name, layer in binary_layers(model).items()
        if layer.input_mode == "sign" and name in flow.bounds and (bounds := flow.input_bounds(name)).one_sign
    ]


def constant_signs_text(layer: str, sign: float, where: str = "") -> str:
    """The warning about ``layer``, whose input has ``sign`` everywhere; ``where`` says after what or on which data."""
    never = "never negative" if sign > 0 else "always negative"
    return (
        f"{layer}: the input of this binary layer is {never}{f' {where}' if where else ''}, so all its signs are "
        f"{sign:+.0f} and it learns nothing from them; move the activation in front of it behind the next batch "
        "normalisation, or replace it by one with values of both signs (Hardtanh, PReLU)"
    )


def _cause(bounds: Bounds) -> str:
    source = bounds.source or "a constant"
    return f"behind {source}{' until training has moved the parameters before it' if bounds.learnt else ''}"
