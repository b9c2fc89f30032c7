"""VGG-Small with binary inner convolutions, as RBNN trains it.

Lin et al. 2020, arXiv:2009.13055, section 4; the layout is that of Zhang et al. 2018 (LQ-Nets), arXiv:1807.10029. At
3x32x32 and 10 classes 4,571,136 weights are binary, in 5 layers.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryConv2d
from bnnedge.layers.hardtanh import Hardtanh


class BinaryVggSmall(nn.Module):
    """Float stem, five binary 3x3 convolutions (max-pool before BN in every second one), float classifier."""

    def __init__(self, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, 128, 3, 1, 1, bias=False), nn.BatchNorm2d(128), Hardtanh()]
        previous = 128
        for channels, pool in ((128, True), (256, False), (256, True), (512, False), (512, True)):
            layers.append(BinaryConv2d(previous, channels, 3, 1, 1))
            if pool:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.BatchNorm2d(channels), Hardtanh()]
            previous = channels
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(512 * (image_size // 8) ** 2, num_classes)
        self._initialize()

    def _initialize(self) -> None:
        """Convolutions N(0, 2 / (k^2 O)), classifier N(0, 0.01^2) with zero bias."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.features(x)))  # type: ignore[no-any-return]


def vgg_small_1w1a(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """The network above for square images of at least 8 pixels a side."""
    if image_size < 8:
        raise ConfigError(f"vgg_small_1w1a halves the image three times: image size {image_size} is below 8")
    return BinaryVggSmall(num_classes, in_channels, image_size)
