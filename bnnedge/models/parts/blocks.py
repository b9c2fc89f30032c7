"""The residual blocks of the binary ResNets.

Lin et al. 2020, "Rotated Binary Neural Network", arXiv:2009.13055, section 4. ``BinaryBasicBlock`` is the basic block
of He et al. 2015, arXiv:1512.03385, with binary convolutions; ``DoubleSkipBlock`` has the skip around every convolution
that Liu et al. 2018, "Bi-Real Net", arXiv:1808.00278, propose in section 3.2.
"""

from __future__ import annotations

from torch import Tensor, nn

from bnnedge.layers.binary_layers import BinaryConv2d
from bnnedge.layers.block_tail import normalize_add_clip
from bnnedge.layers.hardtanh import Hardtanh


class BinaryBasicBlock(nn.Module):
    """One skip around two binary 3x3 convolutions.

    1. ``y = hardtanh(BN(bconv(x)))``, the convolution of stride ``stride``;
    2. ``z = hardtanh(BN(bconv(y)) + shortcut(x))``.

    ``shortcut`` maps the block's input to the shape of its output.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = BinaryConv2d(in_channels, channels, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = Hardtanh()
        self.conv2 = BinaryConv2d(channels, channels, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = shortcut
        self.act2 = Hardtanh()

    def forward(self, x: Tensor) -> Tensor:
        y = normalize_add_clip(self.bn1, self.act1, self.conv1(x))
        return normalize_add_clip(self.bn2, self.act2, self.conv2(y), self.shortcut(x))


class DoubleSkipBlock(nn.Module):
    """A skip around each of two binary 3x3 convolutions.

    1. ``y = hardtanh(BN(bconv(x)) + shortcut(x))``, the convolution of stride ``stride``;
    2. ``z = hardtanh(BN(bconv(y)) + y)``.

    ``shortcut`` maps the block's input to the shape of its output.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = BinaryConv2d(in_channels, channels, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.shortcut = shortcut
        self.act1 = Hardtanh()
        self.conv2 = BinaryConv2d(channels, channels, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = Hardtanh()

    def forward(self, x: Tensor) -> Tensor:
        y = normalize_add_clip(self.bn1, self.act1, self.conv1(x), self.shortcut(x))
        return normalize_add_clip(self.bn2, self.act2, self.conv2(y), y)
