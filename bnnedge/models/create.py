"""Models from a name: a registered one, or a class or factory in the user's own file."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import binary_layers
from bnnedge.layers.convert import convert_to_binary
from bnnedge.models import MODELS


def create_model(name: str, *, num_classes: int, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """Build a model for square images of ``image_size`` pixels with ``in_channels`` channels.

    ``name`` is a registered model or ``path/to/file.py:ClassOrFactory``. The latter is called with those of
    ``num_classes``, ``in_channels`` and ``image_size`` that its signature names. If what it returns holds no binary
    layer yet, its Conv2d and Linear layers but the first and the last become binary.

    Raises ``UnknownNameError`` or, for a file that does not give an ``nn.Module``, ``ConfigError``.
    """
    arguments = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    check_model_name(name)
    if ".py:" not in name:
        return MODELS.load(name)(**arguments)  # type: ignore[no-any-return]
    path, _, attribute = name.rpartition(":")
    factory = _load_attribute(Path(path), attribute)
    parameters = inspect.signature(factory).parameters.values()
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters}
    try:
        model = factory(**{k: v for k, v in arguments.items() if takes_all or k in names})
    except Exception as error:
        raise ConfigError(
            f"{name}, called with those of {', '.join(arguments)} that it takes, fails: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name} should give a torch.nn.Module, but gave a {type(model).__name__}")
    return model if binary_layers(model) else convert_to_binary(model)


def check_model_name(name: str) -> None:
    """Raise what ``create_model`` would raise for a name that cannot exist, without building anything."""
    if name.endswith(".py"):
        raise ConfigError(f"model file {name} needs the name of a class or function, {name}:ClassOrFactory")
    if ".py:" not in name:
        MODELS.check(name)
        return
    path = Path(name.rpartition(":")[0])
    if not path.is_file():
        raise ConfigError(f"model file {path} does not exist; expected path/to/file.py:ClassOrFactory")


def _load_attribute(path: Path, attribute: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"model file {path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"model file {path} fails to import: {type(error).__name__}: {error}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ConfigError(f"model file {path} has no class or function called {attribute!r}")
    return factory  # type: ignore[no-any-return]
