"""Networks by name. One family a file; add a file and a line here, and the CLI and the tests know it.

An entry is a function ``build(num_classes, in_channels, image_size) -> nn.Module`` whose binary layers are
``bnnedge.layers.binary_layers`` layers; the training method fills in how they binarize.
"""

from bnnedge.registry import Registry

MODELS = Registry(
    "model",
    [
        ("resnet18_1w1a", "bnnedge.models.resnet:resnet18_1w1a"),
        ("resnet20_1w1a", "bnnedge.models.resnet20:resnet20_1w1a"),
        ("resnet34_1w1a", "bnnedge.models.resnet:resnet34_1w1a"),
        ("vgg_small_1w1a", "bnnedge.models.vgg_small:vgg_small_1w1a"),
    ],
)
