"""Every registered network against its record, and models from a user's file."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnnedge.errors import ConfigError, UnknownNameError
from bnnedge.layers.binary_layers import binary_layers
from bnnedge.methods import METHODS
from bnnedge.models import MODELS
from bnnedge.models.create import create_model
from bnnedge.models.network import Network, by_image_size
from bnnedge.models.parts.blocks import DoubleSkipBlock
from bnnedge.models.resnet_imagenet import BinaryImageNetResNet
from bnnedge.tasks import TASKS

Size = tuple[int, int]
NETWORKS: dict[str, Network] = {name: MODELS.load(name) for name in MODELS}
FORMS = [(name, form) for name, network in NETWORKS.items() for form in network.forms or (network,)]
IDS = [f"{name}-{form.height}x{form.width}" for name, form in FORMS]


@pytest.mark.parametrize(("name", "form"), FORMS, ids=IDS)
def test_the_record_counts_what_is_built(name: str, form: Network) -> None:
    size = form.height, form.width
    assert NETWORKS[name].form(size) is form
    model = create_model(name, num_classes=form.classes, in_channels=form.channels, image_size=size)
    layers = binary_layers(model).values()
    assert sum(layer.weight.numel() for layer in layers) == form.binary_weights
    assert len(layers) == form.binary_layers
    assert sum(p.numel() for p in model.parameters()) == form.parameters
    rbnn = METHODS.load("rbnn")
    rbnn(rbnn.Options()).attach(model)
    channels = sum(len(layer.weight) for layer in layers)
    assert sum(p.numel() for p in model.parameters()) == form.parameters + 2 * channels, "alpha and beta of each"


@pytest.mark.parametrize(("name", "form"), FORMS, ids=IDS)
def test_the_record_names_a_task_and_a_paper(name: str, form: Network) -> None:
    TASKS.check(form.task)
    assert form.task == NETWORKS[name].task
    assert form.paper and form.description.endswith(".")


def test_the_record_in_words() -> None:
    assert NETWORKS["vgg_small_1w1a"].details() == [
        "VGG-Small with five binary 3x3 convolutions of 128 to 512 channels, for small images.",
        "task: classification",
        "paper: Lin et al. 2020, Rotated Binary Neural Network, arXiv:2009.13055",
        "input: made for 3 channels of 32x32 pixels (height x width); takes 8x8 or more",
        "classes: made for 10, takes any number",
        "parameters: 4,660,106 at that input and number of classes, before a method adds its own",
        "binary weights: 4,571,136 of these, in 5 layers",
    ]
    lines = NETWORKS["resnet18_1w1a"].details()
    assert [line for line in lines if "form" in line] == [
        "ResNet-18 with binary blocks of 64 to 512 channels, in one form for small images and one for ImageNet's.",
        "form for images of 8x8 pixels or more",
        "form for images of 128x128 pixels or more",
    ]
    assert [line for line in lines if "binary weights:" in line] == [
        "  binary weights: 11,157,504 of these, in 19 layers",
        "  binary weights: 10,985,472 of these, in 16 layers",
    ]


def sizes(network: Network) -> tuple[Size, Size]:
    """The smallest image that a network takes, and another one, more than twice as wide as it is high."""
    (height, width), step = network.smallest_size, network.size_step
    return (height, width), (height + 2 * step, 2 * width + 5 * step)


CASES = [
    *((name, method, sizes(NETWORKS[name])[0]) for name, method in itertools.product(MODELS, METHODS)),
    *((name, "ste", sizes(form)[1]) for name, form in FORMS),
]


@pytest.mark.parametrize(
    ("name", "method", "image_size"), CASES, ids=[f"{name}-{method}-{h}x{w}" for name, method, (h, w) in CASES]
)
def test_forward_shape_and_a_gradient_for_every_parameter(name: str, method: str, image_size: Size) -> None:
    network = NETWORKS[name]
    task = TASKS.load(network.task)
    task = task(task.outputs_for(3, network.channels))
    model = create_model(name, num_classes=task.outputs, in_channels=network.channels, image_size=image_size)
    training_method = METHODS.load(method)
    training_method(training_method.Options()).attach(model)
    found = model(torch.randn(3, network.channels, *image_size))
    assert found.shape == (3, *task.output_shape(*image_size))
    found.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


@pytest.mark.parametrize("name", MODELS)
def test_an_image_below_the_smallest_is_refused(name: str) -> None:
    height, width = NETWORKS[name].smallest_size
    for size in ((height - 1, width), (height, width - 1)):
        words = f"image size {size[0]}x{size[1]} is below {height}x{width}"
        with pytest.raises(ConfigError, match=words):
            create_model(name, num_classes=3, image_size=size)


@pytest.mark.parametrize("name", ["resnet18_1w1a", "resnet34_1w1a"])
@pytest.mark.parametrize(
    ("size", "form"),
    [
        (127, "BinaryResNet"),
        ((127, 128), "BinaryResNet"),
        ((500, 127), "BinaryResNet"),
        (128, "BinaryImageNetResNet"),
        ((128, 500), "BinaryImageNetResNet"),
    ],
)
def test_the_image_size_chooses_the_form(name: str, size: int | Size, form: str) -> None:
    assert type(create_model(name, num_classes=2, image_size=size)).__name__ == form


def record(**facts: Any) -> Network:
    counts = {"classes": 2, "channels": 1, "height": 8, "width": 8, "binary_weights": 0, "binary_layers": 0}
    made = {"description": "A network.", "build": lambda *_: nn.Identity(), "paper": "none", "parameters": 0}
    return Network(**{**counts, **made, "smallest_size": (8, 8), **facts})


def test_a_network_may_take_multiples_of_a_number_of_pixels_alone() -> None:
    network = record(size_step=4)
    network.check("net", (8, 12))
    with pytest.raises(ConfigError, match="net takes images whose height and width are multiples of 4 pixels; 12x10"):
        network.check("net", (12, 10))
    assert "input: made for 1 channels of 8x8 pixels (height x width); takes 8x8 or more, in multiples of 4" in (
        network.details()
    )


def test_the_facts_of_a_network_in_forms_are_those_of_the_first() -> None:
    small, large = record(parameters=5), record(parameters=7, smallest_size=(16, 20))
    network = by_image_size("Both.", small, large)
    assert (network.parameters, network.smallest_size, network.description) == (5, (8, 8), "Both.")
    chosen = [network.form(size).parameters for size in ((4, 4), (16, 19), (15, 20), (16, 20), (99, 99))]
    assert chosen == [5, 5, 5, 7, 7]
    assert small.form((99, 99)) is small


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

def told(**given):
    convolutions = nn.Conv2d(given["in_channels"], 4, 1), nn.Conv2d(4, 4, 1)
    net = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, given["num_classes"]))
    net.given = given
    return net

def told_all(image_size, height, width, **given):
    return told(image_size=image_size, height=height, width=width, **given)

class Wrong:
    pass
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "user_net.py"
    path.write_text(USER_FILE)
    return path


def test_model_from_a_user_s_file(user_file: Path) -> None:
    model = create_model(f"{user_file}:small", num_classes=4, in_channels=1, image_size=16)
    assert list(binary_layers(model)) == ["1"]
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 4)
    with pytest.raises(ConfigError, match=r"should give a torch\.nn\.Module"):
        create_model(f"{user_file}:Wrong", num_classes=4)
    with pytest.raises(ConfigError, match="no class or function called 'gone'"):
        create_model(f"{user_file}:gone", num_classes=4)
    with pytest.raises(ConfigError, match="does not exist"):
        create_model(f"{user_file.parent}/nothing.py:small", num_classes=4)
    user_file.write_text("import a_module_that_is_not_there")
    with pytest.raises(ConfigError, match=r"fails to import: user_net\.py:1: in <module>: ModuleNotFoundError"):
        create_model(f"{user_file}:small", num_classes=4)


@pytest.mark.parametrize(("size", "image_size"), [(9, 9), ((9, 9), 9), ((9, 7), (9, 7))])
def test_what_a_user_s_factory_is_called_with(size: int | Size, image_size: int | Size, user_file: Path) -> None:
    usual = {"num_classes": 4, "in_channels": 2, "image_size": image_size}
    model = create_model(f"{user_file}:told", num_classes=4, in_channels=2, image_size=size)
    assert model.given == usual
    model = create_model(f"{user_file}:told_all", num_classes=4, in_channels=2, image_size=size)
    assert model.given == {**usual, "height": 9, "width": size[1] if isinstance(size, tuple) else size}


def test_unknown_model_and_impossible_size() -> None:
    with pytest.raises(UnknownNameError, match="unknown model 'resnet'; known: resnet18_1w1a"):
        create_model("resnet", num_classes=10)
    with pytest.raises(ConfigError, match="at least 1 pixel in height and width, got 4x0"):
        create_model("resnet20_1w1a", num_classes=10, image_size=(4, 0))


def test_public_functions_are_reachable_from_the_package() -> None:
    import bnnedge

    model = bnnedge.binarize(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)), method="rbnn")
    assert list(binary_layers(model)) == ["1"]
    with pytest.raises(ConfigError, match="method ste has no option tmin"):
        bnnedge.binarize(nn.Sequential(), tmin=1.0)
    assert isinstance(bnnedge.create_model("resnet20_1w1a", num_classes=2), nn.Module)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bnnedge.nothing
