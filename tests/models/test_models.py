from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bnnedge.errors import ConfigError, UnknownNameError
from bnnedge.layers.binary_layers import binary_layers
from bnnedge.methods import METHODS
from bnnedge.models import MODELS
from bnnedge.models.create import create_model

PUBLISHED = {
    # name: (binary weights, binary layers, all parameters with RBNN's alpha and beta, 10 classes, 3x32x32)
    "resnet18_1w1a": (11_157_504, 19, 11_184_458),
    "resnet20_1w1a": (267_264, 18, 271_194),
    "vgg_small_1w1a": (4_571_136, 5, 4_663_434),
}


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    model = create_model(name, num_classes=10, in_channels=3, image_size=32)
    rbnn = METHODS.load("rbnn")
    rbnn(rbnn.Options()).attach(model)
    layers = binary_layers(model)
    binary = sum(layer.weight.numel() for layer in layers.values())
    assert (binary, len(layers)) == PUBLISHED[name][:2]
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name][2]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("image_size", [16, 20])
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
