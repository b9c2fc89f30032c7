"""ResNet-20 for small images with binary blocks, as RBNN trains it.

Lin et al. 2020, "Rotated Binary Neural Network", arXiv:2009.13055, section 4; the layout is He et al. 2015,
arXiv:1512.03385, section 4.2, with the shortcut that has no parameters (option A).
"""

from __future__ import annotations

from torch import Tensor, nn

from bnnedge.layers.block_tail import normalize_add_clip
from bnnedge.layers.hardtanh import Hardtanh
from bnnedge.models.network import Network
from bnnedge.models.parts.blocks import BinaryBasicBlock
from bnnedge.models.parts.shortcuts import OptionAShortcut
from bnnedge.models.parts.stages import residual_stages


class BinaryResNet20(nn.Module):
    """A float 3x3 stem; three stages of three blocks with 16, 32 and 64 channels; the mean over the image, a batch norm
    and a float classifier."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.stem_bn = nn.BatchNorm2d(16)
        self.stem_act = Hardtanh()
        self.blocks = residual_stages(16, (3, 3, 3), (16, 32, 64), BinaryBasicBlock, OptionAShortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head_bn = nn.BatchNorm1d(64)
        self.classifier = nn.Linear(64, num_classes)
        self._initialize()

    def _initialize(self) -> None:
        """Draw all weights by Kaiming's normal rule, and set the gains of batch norms of images to 1e-8, so that every
        residual branch starts as nearly 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 1e-8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(normalize_add_clip(self.stem_bn, self.stem_act, self.stem(x)))
        return self.classifier(self.head_bn(self.flatten(self.pool(x))))  # type: ignore[no-any-return]


RESNET20_1W1A = Network(
    description="ResNet-20 with binary blocks of 16 to 64 channels and shortcuts without parameters, for small images.",
    build=lambda num_classes, in_channels, _: BinaryResNet20(num_classes, in_channels),
    paper="Lin et al. 2020, Rotated Binary Neural Network, arXiv:2009.13055",
    classes=10,
    channels=3,
    height=32,
    width=32,
    binary_weights=267_264,
    binary_layers=18,
    parameters=269_850,
    smallest_size=(4, 4),
)
