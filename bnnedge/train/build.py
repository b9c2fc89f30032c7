"""The network of a run's settings, with its training method attached."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bnnedge.config import RunConfig
from bnnedge.data.dataset import Dataset
from bnnedge.data.info import DatasetInfo
from bnnedge.errors import BnnedgeError, ConfigError
from bnnedge.methods import METHODS
from bnnedge.methods.method import Method
from bnnedge.models.create import create_model
from bnnedge.models.user_code import failure
from bnnedge.options import fill
from bnnedge.train.memory_need import check_parameters
from bnnedge.train.rng import rng_state, set_rng_state


def make_model(
    config: RunConfig, info: DatasetInfo, convert: Callable[[nn.Module], nn.Module] | None = None
) -> tuple[nn.Module, Method[Any]]:
    """The model of a resolved config with its method attached, freshly initialized, on the CPU.

    ``convert`` is as for ``create_model``.
    """
    record = info.preprocessing
    check_parameters(config, info)
    model = create_model(
        config.model,
        num_classes=info.outputs,
        in_channels=record.channels,
        image_size=record.size,
        convert=convert,
    )
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
    except (Exception, SystemExit) as error:
        raise ConfigError(f"model {name} cannot take images of shape {shape}: {failure(error)}") from error
    _check_shape(name, output, (2, *info.make_task().output_shape(*record.size)), info)


def check_training_step(name: str, model: nn.Module, method: Method[Any], dataset: Dataset) -> None:
    """Try forward pass, loss and backward pass in training mode on two samples, before a run folder is made.

    A copy is tried, and the random generators are put back, so the model trains as if this had not been. Raises
    ``ConfigError`` with the line of the user's file that fails.
    """
    before = rng_state()
    try:
        probe = copy.deepcopy(model).train()
        method.start_phase(probe, 0)
        inputs, targets = dataset.samples("train", torch.arange(min(2, dataset.size("train"))))
        output = probe(inputs)
        info = dataset.info
        _check_shape(name, output, (len(inputs), *dataset.task.output_shape(*info.preprocessing.size)), info)
        loss = dataset.task.loss(output, targets)
        loss.backward()  # type: ignore[no-untyped-call]
    except (Exception, SystemExit) as error:
        if isinstance(error, BnnedgeError):
            raise
        raise ConfigError(f"model {name} cannot do a training step: {failure(error)}") from error
    finally:
        set_rng_state(before)
    if all(p.grad is None for p in probe.parameters()):
        raise ConfigError(f"model {name} cannot be trained: the loss depends on none of its parameters")


def _check_shape(name: str, output: object, expected: tuple[int, ...], info: DatasetInfo) -> None:
    if not isinstance(output, torch.Tensor) or output.shape != expected:
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ConfigError(
            f"model {name} should give an output of shape {expected} for task {info.task}, but gave {found}"
        )
