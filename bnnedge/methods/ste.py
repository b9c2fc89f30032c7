"""STE: binary weights and activations trained by the straight-through estimator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnnedge.binarization.binarizer import Binarizer
from bnnedge.binarization.surrogate import get_surrogate
from bnnedge.layers.binary_layers import BinaryLayer, binary_layers
from bnnedge.methods.method import Method, Recipe


@dataclass
class SteOptions:
    """Options of ``--method ste``."""

    surrogate: str = "clipped_identity"
    """Gradient of the activations' sign: clipped_identity, approx_sign or identity."""
    weight_surrogate: str = "clipped_identity"
    """Gradient of the weights' sign, same choices."""
    weight_clip: float = 1.0
    """Latent weights are clamped to [-weight_clip, weight_clip] after each step; 0 turns it off."""
    a32: bool = False
    """Leave activations in float (W1A32)."""

    def __post_init__(self) -> None:
        get_surrogate(self.surrogate)
        get_surrogate(self.weight_surrogate)


class SteBinarizer(Binarizer):
    """``sign(x)`` and ``sign(w)`` with the chosen gradient stand-ins; no scale."""

    def __init__(self, options: SteOptions) -> None:
        super().__init__()
        self.input_mode = "float" if options.a32 else "sign"
        self._input_sign = get_surrogate(options.surrogate)
        self._weight_sign = get_surrogate(options.weight_surrogate)

    def binarize_input(self, x: Tensor) -> Tensor:
        return x if self.input_mode == "float" else self._input_sign(x)

    def binarize_weight(self, weight: Tensor) -> Tensor:
        return self._weight_sign(weight)


class Ste(Method[SteOptions]):
    """Straight-through estimator on latent float weights.

    Forward: ``y = conv(sign(x), sign(w))``. Backward: the gradient passes each sign multiplied by the surrogate's
    m(x) (``bnnedge/binarization/surrogate.py``). After the optimizer step, ``w <- clamp(w, -c, c)``.

    Hubara, Courbariaux, Soudry, El-Yaniv, Bengio 2016, "Binarized Neural Networks", arXiv:1602.02830, algorithm 1.
    """

    paper = "Hubara et al. 2016, Binarized Neural Networks, arXiv:1602.02830"
    Options = SteOptions
    recipe = Recipe(optimizer="adam", lr=1e-3)

    def make_binarizer(self, layer: BinaryLayer) -> Binarizer:
        return SteBinarizer(self.options)

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        if self.options.weight_clip > 0:
            for layer in binary_layers(model).values():
                layer.weight.clamp_(-self.options.weight_clip, self.options.weight_clip)
