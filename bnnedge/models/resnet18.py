"""ResNet-18 for small images with binary blocks, as RBNN trains it.

Lin et al. 2020, "Rotated Binary Neural Network", arXiv:2009.13055, section 4; the layout is He et al. 2015,
arXiv:1512.03385, with a 3x3 stem. At 3x32x32 and 10 classes it has 11,172,810 parameters before a method adds its own,
11,157,504 of them binary in 19 layers.
"""

from __future__ import annotations

from torch import Tensor, nn

from bnnedge.layers.binary_layers import BinaryConv2d
from bnnedge.models.basic_block import BinaryBasicBlock


def binary_shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    """A binary 1x1 convolution and BN where the shape changes, else nothing."""
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    return nn.Sequential(BinaryConv2d(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))


class BinaryResNet18(nn.Module):
    """3x3 float stem without activation, four stages of two blocks, global mean, BN, float classifier."""

    def __init__(self, num_classes: int, in_channels: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.stem_bn = nn.BatchNorm2d(widths[0])
        blocks: list[nn.Module] = []
        previous = widths[0]
        for stage, channels in enumerate(widths):
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                shortcut = binary_shortcut(previous, channels, stride)
                blocks.append(BinaryBasicBlock(previous, channels, stride, shortcut))
                previous = channels
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head_bn = nn.BatchNorm1d(previous)
        self.classifier = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem_bn(self.stem(x)))
        return self.classifier(self.head_bn(self.flatten(self.pool(x))))  # type: ignore[no-any-return]


def resnet18_1w1a(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """The network above with widths 64, 128, 256, 512; any image size from 8 up."""
    return BinaryResNet18(num_classes, in_channels, (64, 128, 256, 512))
