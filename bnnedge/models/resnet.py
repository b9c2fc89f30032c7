"""ResNet-18 and ResNet-34 with binary blocks, as RBNN trains them: one form for small images, one for ImageNet's.

Lin et al. 2020, "Rotated Binary Neural Network", arXiv:2009.13055, section 4; the layout is He et al. 2015,
arXiv:1512.03385. The form for small images has a 3x3 stem and binary shortcuts: ResNet-18 at 3x32x32 and 10 classes has
11,174,986 parameters before a method adds its own, 11,157,504 of them binary in 19 layers, ResNet-34 21,283,146 and
21,258,240 in 35 layers. The ImageNet form is in ``resnet_imagenet.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnnedge.layers.binary_layers import BinaryConv2d
from bnnedge.models.basic_block import BinaryBasicBlock
from bnnedge.models.resnet_imagenet import BinaryImageNetResNet

IMAGENET_FORM_FROM = 128
"""Smallest image size, in pixels, for which the names below mean the ImageNet form."""
WIDTHS = (64, 128, 256, 512)


def binary_shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    """A binary 1x1 convolution and BN where the shape changes, else nothing."""
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    return nn.Sequential(BinaryConv2d(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))


class BinaryResNet(nn.Module):
    """3x3 float stem without activation; stages of ``depths[i]`` blocks with ``widths[i]`` channels; global mean, BN,
    float classifier."""

    def __init__(self, num_classes: int, in_channels: int, depths: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.stem_bn = nn.BatchNorm2d(widths[0])
        blocks: list[nn.Module] = []
        previous = widths[0]
        for stage, (depth, channels) in enumerate(zip(depths, widths, strict=True)):
            for block in range(depth):
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
    """ResNet-18 with widths 64 to 512; from 128 pixels up the ImageNet form (7x7 stem, max-pool, double skips, float
    shortcuts), below it the CIFAR form (3x3 stem, binary shortcuts), which takes images from 8 pixels."""
    return _resnet((2, 2, 2, 2), num_classes, in_channels, image_size)


def resnet34_1w1a(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """ResNet-34 with widths 64 to 512; its two forms are chosen by the image size as for resnet18_1w1a."""
    return _resnet((3, 4, 6, 3), num_classes, in_channels, image_size)


def _resnet(depths: Sequence[int], num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    form = BinaryImageNetResNet if image_size >= IMAGENET_FORM_FROM else BinaryResNet
    return form(num_classes, in_channels, depths, WIDTHS)
