"""The binary convolution and the binary dense layer: geometry and weight; a ``Binarizer`` does the rest."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bnnedge.binarization.binarizer import Binarizer


class BinaryConv2d(nn.Conv2d):
    """``conv2d(binarize(x), binarize(w)) * scale + bias``, arguments as in ``nn.Conv2d``.

    Zero padding is added after the sign, so that taps outside the image contribute nothing. ``binarizer`` is set by
    the training method; without one the layer is a plain straight-through binary convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.binarizer = Binarizer()

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(
            self.binarizer.binarize_input(x),
            self.binarizer.binarize_weight(self.weight),
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        scale = self.binarizer.output_scale(self.weight)
        if scale is not None:
            y = y * scale.view(-1, 1, 1)
        if self.binarizer.scales_pixels:
            y = y * self.pixel_scale(x)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    def pixel_scale(self, x: Tensor) -> Tensor:
        """K [N, 1, H', W']: the mean of abs(x) over all channels and the kernel's taps, zeros outside the image.

        Rastegari et al. 2016, "XNOR-Net", arXiv:1603.05279, section 3.2.
        """
        height, width = self.kernel_size
        box = x.new_full((1, 1, height, width), 1 / (height * width))
        return F.conv2d(x.abs().mean(1, keepdim=True), box, None, self.stride, self.padding, self.dilation)


class BinaryLinear(nn.Linear):
    """``linear(binarize(x), binarize(w)) * scale + bias``, arguments as in ``nn.Linear``; ``x`` is [N, I]."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias)
        self.binarizer = Binarizer()

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(self.binarizer.binarize_input(x), self.binarizer.binarize_weight(self.weight))
        scale = self.binarizer.output_scale(self.weight)
        if scale is not None:
            y = y * scale
        if self.binarizer.scales_pixels:
            y = y * x.abs().mean(1, keepdim=True)
        return y if self.bias is None else y + self.bias


BinaryLayer = BinaryConv2d | BinaryLinear


def binary_layers(model: nn.Module) -> dict[str, BinaryLayer]:
    """The binary layers of ``model`` by module path, in the order of registration."""
    return {name: m for name, m in model.named_modules() if isinstance(m, BinaryConv2d | BinaryLinear)}
