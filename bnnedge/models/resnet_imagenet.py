"""The form for ImageNet's images of the binary ResNets: 7x7 stem, max-pool, a skip around each binary convolution.

Lin et al. 2020, "Rotated Binary Neural Network", arXiv:2009.13055, section 4; the double skip is Liu et al. 2018,
"Bi-Real Net", arXiv:1808.00278, section 3.2. The authors' code holds one more batch norm, of the logits, which it never
applies; it is left out here.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnnedge.layers.block_tail import normalize_add_clip
from bnnedge.layers.hardtanh import Hardtanh
from bnnedge.models.parts.blocks import DoubleSkipBlock
from bnnedge.models.parts.shortcuts import float_shortcut
from bnnedge.models.parts.stages import residual_stages


class BinaryImageNetResNet(nn.Module):
    """A float 7x7 stem of stride 2, hardtanh, and a 3x3 max-pool of stride 2; stages of ``depths[i]`` blocks with
    ``widths[i]`` channels and float shortcuts; the mean over the image, a batch norm and a float classifier."""

    def __init__(self, num_classes: int, in_channels: int, depths: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], 7, 2, 3, bias=False)
        self.stem_bn = nn.BatchNorm2d(widths[0])
        self.stem_act = Hardtanh()
        self.stem_pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = residual_stages(widths[0], depths, widths, DoubleSkipBlock, float_shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head_bn = nn.BatchNorm1d(widths[-1])
        self.classifier = nn.Linear(widths[-1], num_classes)
        self._initialize()

    def _initialize(self) -> None:
        """Draw the filters by Kaiming's normal rule, and set the gains of batch norms of images to 1e-8, so that every
        residual branch starts as nearly 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 1e-8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_pool(normalize_add_clip(self.stem_bn, self.stem_act, self.stem(x)))
        return self.classifier(self.head_bn(self.flatten(self.pool(self.blocks(x)))))  # type: ignore[no-any-return]
