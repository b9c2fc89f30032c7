"""How a layer's input becomes -1 and +1, with the options for it.

All methods share them, except those that have a rule of their own for the input.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bnnedge.binarization.binarizer import Binarizer
from bnnedge.binarization.surrogate import Surrogate, clip_of, get_surrogate
from bnnedge.errors import ConfigError


@dataclass
class ActivationOptions:
    """Options of the activations' sign, which the options of a method inherit."""

    surrogate: str = "clipped_identity"
    """Surrogate gradient of the activations' sign: identity, clipped_identity, approx_sign, swish_sign or tanh."""
    activation_clip: float = 1.0
    """clipped_identity passes the gradient of activations up to this magnitude."""
    surrogate_slope: float | None = None
    """Steepness of swish_sign (none: 5) and of tanh (none: 1)."""
    a32: bool = False
    """Leave activations in float (W1A32)."""

    def __post_init__(self) -> None:
        if not self.activation_clip > 0:
            raise ConfigError(
                f"activation_clip must be above 0, got {self.activation_clip}; surrogate identity clips nothing"
            )
        if self.surrogate_slope is not None and not self.surrogate_slope > 0:
            raise ConfigError(f"surrogate_slope must be above 0, got {self.surrogate_slope}")
        self.activation_surrogate()

    def activation_surrogate(self) -> Surrogate:
        """The sign with the chosen surrogate gradient. Raises as ``get_surrogate`` does."""
        return get_surrogate(self.surrogate, clip=self.activation_clip, slope=self.surrogate_slope)


class ActivationBinarizer(Binarizer):
    """``sign(x)`` with the chosen surrogate gradient, or ``x`` itself for W1A32.

    Subclasses add the rule for the weight.
    """

    def __init__(self, options: ActivationOptions) -> None:
        super().__init__()
        self.input_mode = "float" if options.a32 else "sign"
        self._input_sign = options.activation_surrogate()

    @property
    def input_clip(self) -> float | None:
        own = type(self).binarize_input is ActivationBinarizer.binarize_input and self.input_mode == "sign"
        return clip_of(self._input_sign) if own else None

    def binarize_input(self, x: Tensor) -> Tensor:
        return x if self.input_mode == "float" else self._input_sign(x)
