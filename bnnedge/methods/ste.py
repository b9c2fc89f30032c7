"""STE: the straight-through estimator for binary weights and activations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bnnedge.binarization.activation import ActivationBinarizer, ActivationOptions
from bnnedge.binarization.binarizer import Binarizer
from bnnedge.binarization.scale import channel_scale
from bnnedge.binarization.surrogate import clipped_identity, get_surrogate
from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryLayer
from bnnedge.methods.method import Defaults, Method
from bnnedge.methods.parts.clip_weights import clip_weights

MAGNITUDE_AWARE = "magnitude_aware"


@dataclass
class SteOptions(ActivationOptions):
    """Options of ``--method ste``."""

    weight_surrogate: str = "clipped_identity"
    """Surrogate gradient of the weights' sign: one of those of surrogate, or magnitude_aware (clipped_identity with
    the scale mean abs(w))."""
    weight_clip: float = 1.0
    """Latent weights are clamped to [-weight_clip, weight_clip] after each step; 0 turns it off."""
    gradient_clip: float = 0.0
    """Every element of every gradient is clamped to [-gradient_clip, gradient_clip] before the step; 0 turns it off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight_surrogate != MAGNITUDE_AWARE:
            get_surrogate(self.weight_surrogate)
        for name in ("weight_clip", "gradient_clip"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")


class SteBinarizer(ActivationBinarizer):
    """``sign(x)`` and ``sign(w)``, each with its chosen surrogate gradient."""

    def __init__(self, options: SteOptions) -> None:
        super().__init__(options)
        self._scaled = options.weight_surrogate == MAGNITUDE_AWARE
        self._weight_sign = clipped_identity if self._scaled else get_surrogate(options.weight_surrogate)

    @property
    def has_binary_weight(self) -> bool:
        return True

    def binarize_weight(self, weight: Tensor) -> Tensor:
        return self._weight_sign(weight)

    def output_scale(self, weight: Tensor) -> Tensor | None:
        return channel_scale(weight) if self._scaled else None


class Ste(Method[SteOptions]):
    """Trains latent float weights, whose signs are the binary weights, by the straight-through estimator.

    Forward: ``y = conv(sign(x), sign(w))``. Backward: the gradient passes each sign multiplied by the surrogate's
    m(x) (``bnnedge/binarization/surrogate.py``). A step is

    1. ``g <- clamp(g, -v, v)`` for every gradient, if ``gradient_clip`` is v > 0;
    2. the optimizer's update of all parameters, w among them;
    3. ``w <- clamp(w, -c, c)``, if ``weight_clip`` is c > 0.

    With ``weight_surrogate="magnitude_aware"`` it is ``y = alpha_o conv(sign(x), sign(w))`` with
    ``alpha_o = mean abs(w_o)``. The backward pass takes alpha for a constant, so
    ``dL/dw = alpha_o dL/dw_b 1{abs(w) <= 1}`` with w_b the scaled weight. This is the magnitude-aware sign of Liu et
    al. 2018, arXiv:1808.00278, section 3.3, in the form that Larq has.

    Hubara, Courbariaux, Soudry, El-Yaniv, Bengio 2016, "Binarized Neural Networks", arXiv:1602.02830, algorithm 1.
    """

    paper = "Hubara et al. 2016, Binarized Neural Networks, arXiv:1602.02830"
    Options = SteOptions
    defaults = Defaults(optimizer="adam", lr=1e-2)

    def make_binarizer(self, layer: BinaryLayer) -> Binarizer:
        return SteBinarizer(self.options)

    def before_step(self, model: nn.Module) -> None:
        if self.options.gradient_clip > 0:
            nn.utils.clip_grad_value_(model.parameters(), self.options.gradient_clip)

    def after_step(self, model: nn.Module) -> None:
        clip_weights(model, self.options.weight_clip)
