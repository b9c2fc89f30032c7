"""The least memory that a network takes, found without taking it: on PyTorch's meta device, tensors have no elements.

Sizes that ask for more than the machine has are refused before anything is allocated. Bounds from below are compared,
so what could work is never refused. Of a user's own network nothing is known before it is built but its input.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from bnnedge.config import RunConfig
from bnnedge.data.info import DatasetInfo
from bnnedge.errors import ConfigError
from bnnedge.memory import check_memory
from bnnedge.models.create import create_model
from bnnedge.models.user_code import is_user_code

_FLOAT_BYTES = 4


def check_parameters(config: RunConfig, info: DatasetInfo) -> None:
    """Raise ``ConfigError`` if the weights of a registered network need more memory than this machine has."""
    if not is_user_code(config.model):
        what = f"model {config.model} with {info.outputs} outputs"
        check_memory(_weight_bytes(_on_meta(config, info)), what, ConfigError)


def check_training(config: RunConfig, info: DatasetInfo, images: int) -> None:
    """Raise ``ConfigError`` if one pass over ``images`` images needs more memory than this machine has.

    It takes the images, the weights and their gradients, and the largest output of a layer.
    """
    size = "x".join(map(str, info.preprocessing.size))
    what = f"training {config.model} on {images} images of {size} pixels at a time"
    shape = (images, *info.preprocessing.input_shape)
    needed = math.prod(shape) * _FLOAT_BYTES
    check_memory(needed, what, ConfigError)
    if not is_user_code(config.model):
        model = _on_meta(config, info)
        check_memory(needed + 2 * _weight_bytes(model) + _largest_output(model, shape), what, ConfigError)


def _on_meta(config: RunConfig, info: DatasetInfo) -> nn.Module:
    record = info.preprocessing
    with torch.device("meta"):
        return create_model(config.model, num_classes=info.outputs, in_channels=record.channels, image_size=record.size)


def _weight_bytes(model: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.state_dict().values())


@torch.no_grad()
def _largest_output(model: nn.Module, shape: tuple[int, ...]) -> int:
    largest = 0

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    for layer in model.modules():
        layer.register_forward_hook(note)
    with suppress(RuntimeError, NotImplementedError):  # an operator without a meta kernel: what was seen is a bound
        model.eval()(torch.empty(shape, device="meta"))
    return largest
