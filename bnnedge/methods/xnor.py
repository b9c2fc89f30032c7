"""XNOR-Net: binary weights and activations with analytic scaling factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from bnnedge.binarization.activation import ActivationBinarizer, ActivationOptions
from bnnedge.binarization.binarizer import Binarizer
from bnnedge.binarization.scale import as_published, channel_scale, straight_through
from bnnedge.binarization.sign import sign
from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryLayer
from bnnedge.methods.method import Defaults, Method
from bnnedge.methods.parts.clip_weights import clip_weights


@dataclass
class XnorOptions(ActivationOptions):
    """Options of ``--method xnor``."""

    pixel_scale: bool = False
    """Scale each output pixel by K, the mean magnitude of the inputs under the kernel."""
    weight_gradient: Literal["paper", "straight_through"] = "paper"
    """Gradient of the scaled weight sign: the paper's, or the clipped identity alone."""
    weight_clip: float = 1.0
    """Latent weights are clamped to [-weight_clip, weight_clip] after each step; 0 turns it off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight_clip < 0:
            raise ConfigError(f"weight_clip must be at least 0, got {self.weight_clip}")
        if self.pixel_scale and self.a32:
            raise ConfigError("pixel_scale makes up for the activations' sign; leave it out with a32")


class XnorBinarizer(ActivationBinarizer):
    """``sign(x)`` and ``alpha_o sign(w)``.

    In eval mode alpha_o is the output's scale, and the weight is sign(w) alone.
    """

    def __init__(self, options: XnorOptions) -> None:
        super().__init__(options)
        self.scales_pixels = options.pixel_scale
        self._scaled_sign = as_published if options.weight_gradient == "paper" else straight_through

    @property
    def has_binary_weight(self) -> bool:
        return True

    def binarize_weight(self, weight: Tensor) -> Tensor:
        return self._scaled_sign(weight) if self.training else sign(weight)

    def output_scale(self, weight: Tensor) -> Tensor | None:
        return None if self.training else channel_scale(weight)


class Xnor(Method[XnorOptions]):
    """Multiplies binary convolutions by the mean magnitude of the float weights, and on request by that of the inputs.

    Forward: ``y = conv(sign(x), alpha_o sign(w))`` with ``alpha_o = mean abs(w_o)`` (eq. 6). With ``pixel_scale``, y is
    multiplied by K, the mean of abs(x) over the channels and the kernel's taps (section 3.2). Backward, for filters of
    n weights and with ``g = dL/d(alpha_o sign(w))``:

    - ``weight_gradient="paper"``: ``dL/dw = g (1/n + alpha_o 1{abs(w) <= 1})`` (section 3.1);
    - ``weight_gradient="straight_through"``: ``dL/dw = g 1{abs(w) <= 1}``, as in ReActNet's and BNEW's code.

    The activations' sign passes the gradient as ``surrogate`` says, K by the chain rule. After the step,
    ``w <- clamp(w, -c, c)`` with c = ``weight_clip``. With ``--a32`` this is the paper's Binary-Weight-Network.

    A layer with ``binary_input=False`` has no K, which would make up for magnitudes that no sign has taken away.

    Differs from the paper: K averages over all channels in a grouped convolution too. The paper has no such one.

    Rastegari, Ordonez, Redmon, Farhadi 2016, "XNOR-Net", ECCV, arXiv:1603.05279.
    """

    paper = "Rastegari et al. 2016, XNOR-Net, arXiv:1603.05279"
    Options = XnorOptions
    defaults = Defaults(optimizer="adam", lr=1e-2)

    def make_binarizer(self, layer: BinaryLayer) -> Binarizer:
        return XnorBinarizer(self.options)

    def after_step(self, model: nn.Module) -> None:
        clip_weights(model, self.options.weight_clip)
