"""The contract between a binary layer and a training method.

A layer owns its weight and its geometry; a ``Binarizer`` says how the input and the weight become -1 and +1 and what
scales the result. A method supplies one for each layer, so any method trains any model.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from bnnedge.binarization.surrogate import clipped_identity

InputMode = Literal["sign", "centered_sign", "float", "standardized"]


class Binarizer(nn.Module):
    """How one binary layer is binarized; this base class is the plain straight-through estimator.

    The layer computes ``conv(binarize_input(x), binarize_weight(w)) * output_scale(w) + bias``, and with
    ``scales_pixels`` multiplies the first term by XNOR-Net's K of the input (``BinaryConv2d.pixel_scale``) too. A layer
    with ``binary_input=False`` asks for neither: it takes x in place of ``binarize_input(x)`` and has no K.

    Subclasses may own parameters and buffers, which are saved in the layer's state dict.

    ``input_mode`` says what ``binarize_input`` does in the deploy form: ``sign`` is sign(x), ``centered_sign`` is
    sign(x - m) with m the mean of all elements of the sample, ``float`` is x (W1A32), ``standardized`` is (x - m) / s
    with s the sample's standard deviation (W1A32).
    """

    input_mode: InputMode = "sign"
    scales_pixels: bool = False

    @property
    def input_clip(self) -> float | None:
        """The c for which ``binarize_input`` is ``sign(x)`` with the gradient ``g 1{abs(x) <= c}``.

        It is infinite where the gradient is ``g``, and None where ``binarize_input`` is anything else. If there is a c,
        the layer may keep bits for the backward pass and run packed kernels.
        """
        return 1.0 if type(self).binarize_input is Binarizer.binarize_input else None

    @property
    def has_binary_weight(self) -> bool:
        """Whether ``binarize_weight`` now returns values of one magnitude in each output channel: a and -a."""
        return not self.training or type(self).binarize_weight is Binarizer.binarize_weight

    def binarize_input(self, x: Tensor) -> Tensor:
        """The values that enter the convolution, from the layer's input ``x`` [N, C, ...]."""
        return clipped_identity(x)

    def binarize_weight(self, weight: Tensor) -> Tensor:
        """The weight that enters the convolution, from the latent ``weight`` of the same shape.

        In eval mode its values are exactly -1 and +1.
        """
        return clipped_identity(weight)

    def output_scale(self, weight: Tensor) -> Tensor | None:
        """The factor of each output channel [O]; None stands for 1."""
        return None
