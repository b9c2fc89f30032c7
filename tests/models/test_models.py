from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnnedge.errors import ConfigError, UnknownNameError
from bnnedge.layers.binary_layers import binary_layers
from bnnedge.methods import METHODS
from bnnedge.models import MODELS
from bnnedge.models.create import create_model
from bnnedge.models.resnet_imagenet import BinaryImageNetResNet, DoubleSkipBlock

CIFAR, IMAGENET = (32, 10), (224, 1000)
PUBLISHED = {
    # (model, (image size, classes)): (binary weights, binary layers, all parameters with RBNN's alpha and beta)
    ("resnet18_1w1a", CIFAR): (11_157_504, 19, 11_184_458),
    # As the authors count, less the 2,000 parameters of a batch norm that they never apply.
    ("resnet18_1w1a", IMAGENET): (10_985_472, 16, 11_698_216),
    ("resnet20_1w1a", CIFAR): (267_264, 18, 271_194),
    # No paper has this one: the ImageNet form's 32 layers and three binary shortcuts.
    ("resnet34_1w1a", CIFAR): (21_086_208 + 172_032, 35, 21_300_042),
    ("resnet34_1w1a", IMAGENET): (21_086_208, 32, 21_813_800),
    ("vgg_small_1w1a", CIFAR): (4_571_136, 5, 4_663_434),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_published_parameter_count(name: str) -> None:
    assert (name, CIFAR) in PUBLISHED


@pytest.mark.parametrize(("name", "task"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str, task: tuple[int, int]) -> None:
    model = create_model(name, num_classes=task[1], in_channels=3, image_size=task[0])
    rbnn = METHODS.load("rbnn")
    rbnn(rbnn.Options()).attach(model)
    layers = binary_layers(model)
    binary = sum(layer.weight.numel() for layer in layers.values())
    assert (binary, len(layers)) == PUBLISHED[name, task][:2]
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name, task][2]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("method", "image_size"), [*((method, 16) for method in METHODS), ("ste", 20)])
def test_forward_shape_and_a_gradient_for_every_parameter(name: str, method: str, image_size: int) -> None:
    model = create_model(name, num_classes=7, in_channels=1, image_size=image_size)
    training_method = METHODS.load(method)
    training_method(training_method.Options()).attach(model)
    logits = model(torch.randn(3, 1, image_size, image_size))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


@pytest.mark.parametrize("name", ["resnet18_1w1a", "resnet34_1w1a"])
def test_the_image_size_chooses_the_form(name: str) -> None:
    forms = [type(create_model(name, num_classes=2, image_size=size)).__name__ for size in (127, 128)]
    assert forms == ["BinaryResNet", "BinaryImageNetResNet"]


def test_imagenet_form_step_by_step() -> None:
    """The forward pass again, from its description, on an odd image size."""
    model = BinaryImageNetResNet(5, 2, depths=(1, 2), widths=(3, 7))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    model.eval()
    x = torch.randn(2, 2, 29, 29)
    y = F.max_pool2d(F.hardtanh(model.stem_bn(F.conv2d(x, model.stem.weight, None, 2, 3))), 3, 2, 1)
    assert y.shape == (2, 3, 8, 8)
    blocks = [b for b in model.blocks if isinstance(b, DoubleSkipBlock)]
    assert [b.conv1.stride[0] for b in blocks] == [1, 2, 1]
    assert [isinstance(b.shortcut, nn.Identity) for b in blocks] == [True, False, True]
    assert not binary_layers(blocks[1].shortcut)
    for block in blocks:
        for conv, norm, skip in ((block.conv1, block.bn1, block.shortcut), (block.conv2, block.bn2, nn.Identity())):
            y = F.hardtanh(norm(conv(y)) + skip(y))
    assert y.shape == (2, 7, 4, 4)
    assert torch.equal(model(x), model.classifier(model.head_bn(y.mean((2, 3)))))


USER_FILE = """
from torch import nn

def small(num_classes):
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 144, num_classes))

class Wrong:
    pass
"""


def test_model_from_a_user_s_file(tmp_path: Path) -> None:
    file = tmp_path / "user_net.py"
    file.write_text(USER_FILE)
    model = create_model(f"{file}:small", num_classes=4, in_channels=1, image_size=16)
    assert list(binary_layers(model)) == ["1"]
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 4)
    with pytest.raises(ConfigError, match=r"should give a torch\.nn\.Module"):
        create_model(f"{file}:Wrong", num_classes=4)
    with pytest.raises(ConfigError, match="no class or function called 'gone'"):
        create_model(f"{file}:gone", num_classes=4)
    with pytest.raises(ConfigError, match="does not exist"):
        create_model(f"{tmp_path}/nothing.py:small", num_classes=4)
    file.write_text("import a_module_that_is_not_there")
    with pytest.raises(ConfigError, match="fails to import: ModuleNotFoundError"):
        create_model(f"{file}:small", num_classes=4)


def test_unknown_model_and_image_that_is_too_small() -> None:
    with pytest.raises(UnknownNameError, match="unknown model 'resnet'; known: resnet18_1w1a"):
        create_model("resnet", num_classes=10)
    with pytest.raises(ConfigError, match="image size 4 is below 8"):
        create_model("vgg_small_1w1a", num_classes=10, image_size=4)


def test_public_functions_are_reachable_from_the_package() -> None:
    import bnnedge

    model = bnnedge.binarize(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)), method="rbnn")
    assert list(binary_layers(model)) == ["1"]
    with pytest.raises(ConfigError, match="method ste has no option tmin"):
        bnnedge.binarize(nn.Sequential(), tmin=1.0)
    assert isinstance(bnnedge.create_model("resnet20_1w1a", num_classes=2), nn.Module)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bnnedge.nothing
