"""The ImageNet form of the binary ResNets: 7x7 stem, max-pool, a skip around each binary convolution.

Lin et al. 2020, arXiv:2009.13055, section 4; the double skip is Liu et al. 2018, "Bi-Real Net", arXiv:1808.00278,
section 3.2. At 3x224x224 and 1000 classes ResNet-18 has 11,690,536 parameters before a method adds its own, 10,985,472
of them binary in 16 layers, ResNet-34 21,798,696 and 21,086,208 in 32 layers. The authors' code holds one more batch
norm (of the logits), which it never applies; it is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnnedge.layers.binary_layers import BinaryConv2d
from bnnedge.layers.block_tail import normalize_add_clip
from bnnedge.layers.hardtanh import Hardtanh


class DoubleSkipBlock(nn.Module):
    """y = hardtanh(BN(bconv(x)) + shortcut(x)), then hardtanh(BN(bconv(y)) + y).

    ``shortcut`` maps the input to the output's shape.
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


def float_shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    """A float 1x1 convolution and BN where the shape changes, else nothing."""
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class BinaryImageNetResNet(nn.Module):
    """7x7 float stem of stride 2, hardtanh, 3x3 max-pool of stride 2; stages of ``depths[i]`` blocks with ``widths[i]``
    channels; global mean, BN, float classifier."""

    def __init__(self, num_classes: int, in_channels: int, depths: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], 7, 2, 3, bias=False)
        self.stem_bn = nn.BatchNorm2d(widths[0])
        self.stem_act = Hardtanh()
        self.stem_pool = nn.MaxPool2d(3, 2, 1)
        blocks: list[nn.Module] = []
        previous = widths[0]
        for stage, (depth, channels) in enumerate(zip(depths, widths, strict=True)):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(DoubleSkipBlock(previous, channels, stride, float_shortcut(previous, channels, stride)))
                previous = channels
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head_bn = nn.BatchNorm1d(previous)
        self.classifier = nn.Linear(previous, num_classes)
        self._initialize()

    def _initialize(self) -> None:
        """Kaiming-normal filters, and gains of 1e-8 for the batch norms of maps: every branch starts as nothing."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 1e-8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_pool(normalize_add_clip(self.stem_bn, self.stem_act, self.stem(x)))
        return self.classifier(self.head_bn(self.flatten(self.pool(self.blocks(x)))))  # type: ignore[no-any-return]
