"""What a residual block's shortcut does where the block changes the number of channels or the size of the image.

He et al. 2015, arXiv:1512.03385, section 3.3: option A has no parameters, option B is a 1x1 convolution.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bnnedge.layers.binary_layers import BinaryConv2d


class OptionAShortcut(nn.Module):
    """Takes every ``stride``-th row and column, and adds channels of zeros before and after the input's channels.

    If an odd number of channels is added, the larger half comes after.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (channels - in_channels) // 2
        self.after = channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def binary_shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    """Option B with a binary convolution: a binary 1x1 convolution and a batch norm."""
    return nn.Sequential(BinaryConv2d(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))


def float_shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    """Option B: a float 1x1 convolution and a batch norm."""
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
