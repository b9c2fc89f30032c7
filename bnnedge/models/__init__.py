"""Networks by name, one family a file. A new file and a line here, and the command line and the tests know the network.

An entry is a ``Network``: a record of how the network is built, what it is meant for and what it consists of.
"""

from bnnedge.registry import Registry

MODELS = Registry(
    "model",
    [
        ("resnet18_1w1a", "bnnedge.models.resnet:RESNET18_1W1A"),
        ("resnet20_1w1a", "bnnedge.models.resnet20:RESNET20_1W1A"),
        ("resnet34_1w1a", "bnnedge.models.resnet:RESNET34_1W1A"),
        ("vgg_small_1w1a", "bnnedge.models.vgg_small:VGG_SMALL_1W1A"),
    ],
)
