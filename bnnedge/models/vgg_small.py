"""VGG-Small with binary inner convolutions, as RBNN trains it.

Lin et al. 2020, "Rotated Binary Neural Network", arXiv:2009.13055, section 4; the layout is that of Zhang et al. 2018,
"LQ-Nets", arXiv:1807.10029.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from bnnedge.layers.binary_layers import BinaryConv2d
from bnnedge.layers.hardtanh import Hardtanh
from bnnedge.models.network import Network


class BinaryVggSmall(nn.Module):
    """A float 3x3 stem; five binary 3x3 convolutions, with a 2x2 max-pool before the batch norm of the first, third and
    fifth one; a float classifier."""

    def __init__(self, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> None:
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
        height, width = image_size
        self.classifier = nn.Linear(512 * (height // 8) * (width // 8), num_classes)
        self._initialize()

    def _initialize(self) -> None:
        """Draw the filters from N(0, 2 / (k^2 O)), k the kernel size and O the output channels, and the classifier from
        N(0, 0.01^2) with zero bias."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.features(x)))  # type: ignore[no-any-return]


VGG_SMALL_1W1A = Network(
    description="VGG-Small with five binary 3x3 convolutions of 128 to 512 channels, for small images.",
    build=BinaryVggSmall,
    paper="Lin et al. 2020, Rotated Binary Neural Network, arXiv:2009.13055",
    classes=10,
    channels=3,
    height=32,
    width=32,
    binary_weights=4_571_136,
    binary_layers=5,
    parameters=4_660_106,
    smallest_size=(8, 8),
)
