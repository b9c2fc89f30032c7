"""The network of a run's settings, with its training method attached."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bnnedge.config import RunConfig
from bnnedge.data.info import DatasetInfo
from bnnedge.errors import ConfigError, one_line
from bnnedge.methods import METHODS
from bnnedge.methods.method import Method
from bnnedge.models.create import create_model
from bnnedge.options import fill


def make_model(config: RunConfig, info: DatasetInfo) -> tuple[nn.Module, Method[Any]]:
    """The model of a resolved config with its method attached, freshly initialized, on the CPU."""
    record = info.preprocessing
    model = create_model(config.model, num_classes=info.outputs, in_channels=record.channels, image_size=record.size)
    method_class = METHODS.load(config.method)
    method: Method[Any] = method_class(fill(method_class.Options, config.method_options, f"method {config.method}"))
    method.task = info.make_task()
    method.attach(model)
    return model, method


@torch.no_grad()
def check_output(name: str, model: nn.Module, info: DatasetInfo) -> None:
    """Try two images before a run folder is made, so that a model that does not fit is one clear message."""
    record = info.preprocessing
    shape = (2, *record.input_shape)
    try:
        output = model.eval()(torch.zeros(shape))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ConfigError(f"model {name} cannot take images of shape {shape}: {one_line(error)}") from error
    expected = (2, *info.make_task().output_shape(*record.size))
    if not isinstance(output, torch.Tensor) or output.shape != expected:
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ConfigError(
            f"model {name} should give an output of shape {expected} for task {info.task}, but gave {found}"
        )
