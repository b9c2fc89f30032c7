"""ResNet-20 for small images with binary blocks, as RBNN trains it.

Lin et al. 2020, arXiv:2009.13055, section 4; the layout is He et al. 2015, arXiv:1512.03385, section 4.2, with the
parameter-free shortcut (option A). At 3x32x32 and 10 classes 267,264 weights are binary, in 18 layers.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bnnedge.layers.block_tail import normalize_add_clip
from bnnedge.layers.hardtanh import Hardtanh
from bnnedge.models.basic_block import BinaryBasicBlock


class OptionAShortcut(nn.Module):
    """Every second pixel, and zero channels on both sides up to the new width."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (channels - in_channels) // 2
        self.after = channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BinaryResNet20(nn.Module):
    """3x3 float stem, three stages of three blocks with 16, 32, 64 channels, global mean, BN, float classifier."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.stem_bn = nn.BatchNorm2d(16)
        self.stem_act = Hardtanh()
        blocks: list[nn.Module] = []
        previous = 16
        for stage, channels in enumerate((16, 32, 64)):
            for block in range(3):
                stride = 2 if stage > 0 and block == 0 else 1
                changes = stride != 1 or previous != channels
                shortcut = OptionAShortcut(previous, channels, stride) if changes else nn.Identity()
                blocks.append(BinaryBasicBlock(previous, channels, stride, shortcut))
                previous = channels
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head_bn = nn.BatchNorm1d(64)
        self.classifier = nn.Linear(64, num_classes)
        self._initialize()

    def _initialize(self) -> None:
        """Kaiming-normal weights, and BN gains of 1e-8 so that every residual branch starts as nothing."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 1e-8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(normalize_add_clip(self.stem_bn, self.stem_act, self.stem(x)))
        return self.classifier(self.head_bn(self.flatten(self.pool(x))))  # type: ignore[no-any-return]


def resnet20_1w1a(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """The network above; any image size from 4 up."""
    return BinaryResNet20(num_classes, in_channels)
