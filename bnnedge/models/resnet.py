"""ResNet-18 and ResNet-34 with binary blocks, as RBNN trains them: one form for small images, one for ImageNet's.

Lin et al. 2020, "Rotated Binary Neural Network", arXiv:2009.13055, section 4; the layout is He et al. 2015,
arXiv:1512.03385. The form for small images is ``BinaryResNet``, the one for ImageNet's is in ``resnet_imagenet.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnnedge.models.network import Network, by_image_size
from bnnedge.models.parts.blocks import BinaryBasicBlock
from bnnedge.models.parts.shortcuts import binary_shortcut
from bnnedge.models.parts.stages import residual_stages
from bnnedge.models.resnet_imagenet import BinaryImageNetResNet

IMAGENET_FORM_FROM = 128
"""Height and width, in pixels, from which on the networks below take their ImageNet form."""
DEPTHS_18, DEPTHS_34 = (2, 2, 2, 2), (3, 4, 6, 3)
WIDTHS = (64, 128, 256, 512)
PAPER = "Lin et al. 2020, Rotated Binary Neural Network, arXiv:2009.13055"


class BinaryResNet(nn.Module):
    """The form for small images.

    A float 3x3 stem with a batch norm and no activation; stages of ``depths[i]`` blocks with ``widths[i]`` channels and
    binary shortcuts; the mean over the image, a batch norm and a float classifier.
    """

    def __init__(self, num_classes: int, in_channels: int, depths: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.stem_bn = nn.BatchNorm2d(widths[0])
        self.blocks = residual_stages(widths[0], depths, widths, BinaryBasicBlock, binary_shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head_bn = nn.BatchNorm1d(widths[-1])
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem_bn(self.stem(x)))
        return self.classifier(self.head_bn(self.flatten(self.pool(x))))  # type: ignore[no-any-return]


def _small_form(depths: Sequence[int], binary_weights: int, binary_layers: int, parameters: int) -> Network:
    return Network(
        description="A 3x3 stem, blocks with one skip, and binary shortcuts.",
        build=lambda num_classes, in_channels, _: BinaryResNet(num_classes, in_channels, depths, WIDTHS),
        paper=PAPER,
        classes=10,
        channels=3,
        height=32,
        width=32,
        binary_weights=binary_weights,
        binary_layers=binary_layers,
        parameters=parameters,
        smallest_size=(8, 8),
    )


def _imagenet_form(depths: Sequence[int], binary_weights: int, binary_layers: int, parameters: int) -> Network:
    return Network(
        description="A 7x7 stem with max-pool, blocks with a skip around each convolution, and float shortcuts.",
        build=lambda num_classes, in_channels, _: BinaryImageNetResNet(num_classes, in_channels, depths, WIDTHS),
        paper=PAPER,
        classes=1000,
        channels=3,
        height=224,
        width=224,
        binary_weights=binary_weights,
        binary_layers=binary_layers,
        parameters=parameters,
        smallest_size=(IMAGENET_FORM_FROM, IMAGENET_FORM_FROM),
    )


RESNET18_1W1A = by_image_size(
    "ResNet-18 with binary blocks of 64 to 512 channels, in one form for small images and one for ImageNet's.",
    _small_form(DEPTHS_18, binary_weights=11_157_504, binary_layers=19, parameters=11_174_986),
    # The authors count 2,000 parameters more, of a batch norm of the logits that their code never applies.
    _imagenet_form(DEPTHS_18, binary_weights=10_985_472, binary_layers=16, parameters=11_690_536),
)

RESNET34_1W1A = by_image_size(
    "ResNet-34 with binary blocks of 64 to 512 channels, in one form for small images and one for ImageNet's.",
    # No paper has this one: it is the ImageNet form's 32 layers and three binary shortcuts of 172,032 weights.
    _small_form(DEPTHS_34, binary_weights=21_258_240, binary_layers=35, parameters=21_283_146),
    _imagenet_form(DEPTHS_34, binary_weights=21_086_208, binary_layers=32, parameters=21_798_696),
)
