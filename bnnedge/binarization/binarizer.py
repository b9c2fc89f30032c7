"""The contract between a binary layer and a training method.

A layer owns its weight and its geometry; a ``Binarizer`` says how the input and the weight become {-1, +1} and what
scales the result. A method supplies one per layer, so any method trains any model.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from bnnedge.binarization.surrogate import clipped_identity

InputMode = Literal["sign", "centered_sign", "float", "standardized"]


class Binarizer(nn.Module):
    """How one binary layer is binarized; this base class is the plain straight-through estimator.

    The layer computes ``conv(binarize_input(x), binarize_weight(w)) * output_scale(w) + bias``, and with
    ``scales_pixels`` multiplies the first term by XNOR-Net's K of the input (``BinaryConv2d.pixel_scale``) too.
    Subclasses may own
    parameters and buffers; they travel with the layer in its state dict.

    ``input_mode`` is what the input transform comes to once training is over: ``sign`` is sign(x), ``centered_sign``
    is sign(x - mean of the sample over all its elements), ``float`` leaves x alone (W1A32), ``standardized`` is
    (x - mean) / std of the sample (W1A32).
    """

    input_mode: InputMode = "sign"
    scales_pixels: bool = False

    @property
    def input_clip(self) -> float | None:
        """c where ``binarize_input`` is ``sign(x)`` with the gradient ``g 1{abs(x) <= c}``, infinite where it is
        ``g``; None where it is anything else. With a c the layer may keep bits and run packed kernels instead.
        """
        return 1.0 if type(self).binarize_input is Binarizer.binarize_input else None

    @property
    def has_binary_weight(self) -> bool:
        """Whether ``binarize_weight`` now returns one magnitude in each output channel: -1 and +1, or a multiple."""
        return not self.training or type(self).binarize_weight is Binarizer.binarize_weight

    def binarize_input(self, x: Tensor) -> Tensor:
        """``x`` [N, C, ...] to the values that enter the convolution."""
        return clipped_identity(x)

    def binarize_weight(self, weight: Tensor) -> Tensor:
        """The latent weight to the one that enters the convolution, same shape; in eval mode exactly -1 and +1."""
        return clipped_identity(weight)

    def output_scale(self, weight: Tensor) -> Tensor | None:
        """Factor for each output channel, shape [O], or None for 1."""
        return None
