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

    def binarize_input(self, x: Tensor) -> Tensor:
        """``x`` [N, C, ...] to the values that enter the convolution."""
        return clipped_identity(x)

    def binarize_weight(self, weight: Tensor) -> Tensor:
        """The latent weight to the one that enters the convolution, same shape; in eval mode exactly -1 and +1."""
        return clipped_identity(weight)

    def output_scale(self, weight: Tensor) -> Tensor | None:
        """Factor for each output channel, shape [O], or None for 1."""
        return None
