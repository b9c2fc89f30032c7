"""The assignment of parameters to optimizers; every trainable parameter belongs to exactly one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bnnedge.config import RunConfig
from bnnedge.errors import ConfigError
from bnnedge.methods.method import Method, Phase, PhaseSize

Optimizers = dict[str, torch.optim.Optimizer]
"""Optimizers by name: ``method``, if the method has one of its own, and ``run`` for all other parameters."""


def make_optimizers(
    config: RunConfig, model: nn.Module, method: Method[Any], phase: Phase, steps_per_epoch: int, train_images: int
) -> Optimizers:
    """Fresh optimizers for one phase: the method's, and the run's for the parameters that the method leaves.

    Raises ``ConfigError`` unless every trainable parameter is claimed exactly once.
    """
    own = method.make_optimizer(model, PhaseSize(phase.epochs, steps_per_epoch, train_images))
    optimizers = {} if own is None else {"method": own}
    taken = {id(p) for p in _parameters(own)} if own is not None else set()
    rest = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in taken}
    if rest:
        decay = config.weight_decay if phase.weight_decay is None else phase.weight_decay
        optimizers["run"] = _run_optimizer(config, method, rest, decay or 0.0)
    check_claims(model, optimizers)
    return optimizers


def check_claims(model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Raise ``ConfigError``, naming the parameters, unless each trainable one is in exactly one optimizer, once."""
    names = {id(p): name for name, p in model.named_parameters()}
    claims = {id(p): 0 for p in model.parameters() if p.requires_grad}
    strangers = 0
    for optimizer in optimizers.values():
        for parameter in _parameters(optimizer):
            if id(parameter) in claims:
                claims[id(parameter)] += 1
            else:
                strangers += 1
    missed = [names[key] for key, count in claims.items() if count == 0]
    doubled = [names[key] for key, count in claims.items() if count > 1]
    if missed or doubled or strangers:
        raise ConfigError(
            f"every trainable parameter must belong to one update rule: {_some(missed)} to none, {_some(doubled)} to "
            f"several, and {strangers} of those claimed are frozen or not the model's"
        )


def _run_optimizer(
    config: RunConfig, method: Method[Any], parameters: Mapping[str, nn.Parameter], decay: float
) -> torch.optim.Optimizer:
    assert config.lr is not None, "the config is not resolved"
    decayed = [p for n, p in parameters.items() if method.decays(n, p)]
    others = [p for n, p in parameters.items() if not method.decays(n, p)]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    # Fused is one pass over each parameter, on a CPU too: a quarter of the time of Adam's default there.
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.lr, momentum=config.momentum or 0.0, fused=True)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, config.lr, fused=True)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
