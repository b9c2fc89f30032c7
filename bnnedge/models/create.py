"""Models from a name: a registered one, or a class or factory in the user's own file."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import binary_layers
from bnnedge.layers.convert import convert_with_report, warn_all
from bnnedge.layers.data_flow.find import copied
from bnnedge.models import MODELS
from bnnedge.models.network import Network
from bnnedge.models.user_code import failure, is_user_code, load_attribute

ImageSize = int | tuple[int, int]
"""Height and width in pixels; one number for both."""


def create_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: ImageSize = 32,
    convert: Callable[[nn.Module], nn.Module] | None = None,
) -> nn.Module:
    """Build a model for images [N, ``in_channels``, H, W] of ``image_size`` (H, W) pixels, or of one number for both.

    ``name`` is a registered model or ``path/to/file.py:ClassOrFactory``. The latter is called with those of
    ``num_classes``, ``in_channels``, ``image_size``, ``height`` and ``width`` that its signature names; ``image_size``
    is one number for square images and the pair for others. A factory that takes ``**kwargs`` gets the first three. If
    what it returns holds no binary layer yet, its Conv2d and Linear layers but the first and the last become binary, or
    ``convert`` makes a binary network of it.

    Raises ``UnknownNameError``, or ``ConfigError`` for images that a registered model does not take and for a file that
    does not give an ``nn.Module``.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1:
        raise ConfigError(f"image_size must be at least 1 pixel in height and width, got {height}x{width}")
    check_model_name(name)
    if not is_user_code(name):
        network: Network = MODELS.load(name)
        network.check(name, (height, width))
        return network.build(num_classes, in_channels, (height, width))
    factory = load_attribute(name)
    arguments = _arguments(factory, num_classes, in_channels, (height, width))
    try:
        model = factory(**arguments)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{name}, called with those of num_classes, in_channels, image_size, height and width that it takes, "
            f"fails: {failure(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name} should give a torch.nn.Module, but gave a {type(model).__name__}")
    if binary_layers(model):
        return model
    if convert is not None:
        return convert(model)
    return _converted(name, model, torch.zeros(2, in_channels, height, width))


def _converted(name: str, model: nn.Module, images: Tensor) -> nn.Module:
    """``model`` with binary layers; ``ConfigError`` if its forward fails on ``images``."""
    binary, conversion, _ = convert_with_report(model, example_inputs=images)
    if conversion.warned:  # the cause can be a forward that does not work at all
        try:
            with torch.no_grad():
                copied(model).eval()(images)
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"{name} fails on a batch of images of shape {list(images.shape)}: {failure(error)}"
            ) from error
    warn_all(conversion.warned)
    return binary


def _arguments(
    factory: Callable[..., Any], num_classes: int, in_channels: int, image_size: tuple[int, int]
) -> dict[str, Any]:
    """What a user's factory is called with; see ``create_model``."""
    height, width = image_size
    square = height if height == width else image_size
    usual = {"num_classes": num_classes, "in_channels": in_channels, "image_size": square}
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # what is written in C may have none
        return {}
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters}
    sides = {"height": height, "width": width}
    return {k: v for k, v in usual.items() if takes_all or k in names} | {k: v for k, v in sides.items() if k in names}


def check_model_name(name: str) -> None:
    """Raise what ``create_model`` raises for a name that cannot exist, without building anything."""
    if name.endswith(".py"):
        raise ConfigError(f"model file {name} needs the name of a class or function, {name}:ClassOrFactory")
    if not is_user_code(name):
        MODELS.check(name)
        return
    path = Path(name.rpartition(":")[0])
    if not path.is_file():
        raise ConfigError(f"model file {path} does not exist; expected path/to/file.py:ClassOrFactory")
