"""The residual block of the binary ResNets for small images.

He et al. 2015, arXiv:1512.03385, with binary convolutions as in Lin et al. 2020, "Rotated Binary Neural
Network", arXiv:2009.13055, section 4.
"""

from __future__ import annotations

from torch import Tensor, nn

from bnnedge.layers.binary_layers import BinaryConv2d
from bnnedge.layers.block_tail import normalize_add_clip
from bnnedge.layers.hardtanh import Hardtanh


class BinaryBasicBlock(nn.Module):
    """bconv - BN - hardtanh - bconv - BN - (+ shortcut) - hardtanh.

    ``shortcut`` maps the input to the output's shape.
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
