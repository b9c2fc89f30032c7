"""The saved states of optimizers, checked against the optimizers that go on with them.

PyTorch loads whatever it is given: a tensor of another shape is then read beyond its end by the fused kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bnnedge.errors import CheckpointError, printable


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Any, steps: int, what: str) -> None:
    """Give ``optimizer`` the state dict ``saved``.

    ``steps`` is the number of its steps so far. Raises ``CheckpointError``, which begins with ``what``, for a state
    that the optimizer cannot have after them: other groups or parameters, tensors of other shapes, other kinds of
    values, more steps.
    """
    fresh = optimizer.state_dict()
    if not isinstance(saved, dict) or not {"state", "param_groups"} <= saved.keys():
        raise CheckpointError(f"{what}: expected state and param_groups of an optimizer")
    groups, states = saved["param_groups"], saved["state"]
    if not isinstance(groups, list) or len(groups) != len(fresh["param_groups"]) or not isinstance(states, dict):
        raise CheckpointError(f"{what}: expected {len(fresh['param_groups'])} groups of parameters")
    merged = [_group(new, old, steps, what) for new, old in zip(fresh["param_groups"], groups, strict=True)]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not states.keys() <= set(range(len(parameters))):
        raise CheckpointError(f"{what}: expected states of {len(parameters)} parameters, found those of others")
    kinds: dict[str, str] = {}
    for number, state in states.items():
        found = _kinds(state, parameters[number], steps, f"{what}: parameter {number}")
        if found != (kinds := kinds or found):
            raise CheckpointError(f"{what}: parameter {number} has another kind of state than the others")
    optimizer.load_state_dict({"state": states, "param_groups": merged})


def _group(fresh: dict[str, Any], saved: Any, steps: int, what: str) -> dict[str, Any]:
    """The settings of a group; those that the saved one lacks, as a newer PyTorch has more, are the fresh ones."""
    if not isinstance(saved, dict) or saved.get("params") != fresh["params"] or not saved.keys() <= fresh.keys():
        raise CheckpointError(f"{what}: expected a group of {len(fresh['params'])} parameters with {', '.join(fresh)}")
    for name, value in saved.items():
        expected = fresh[name]
        if name == "step":
            fits = type(value) is int and 0 <= value <= steps
        elif type(expected) in (int, float):
            fits = type(value) in (int, float) and value >= 0
        else:
            fits = value == expected or (isinstance(expected, tuple) and value == list(expected))
        if not fits:
            raise CheckpointError(f"{what}: {name} cannot be {printable(repr(value), 60)} after {steps} steps")
    return {**fresh, **saved}


def _kinds(state: Any, parameter: Tensor, steps: int, what: str) -> dict[str, str]:
    """What kind each entry of a parameter's state is of."""
    if not isinstance(state, dict):
        raise CheckpointError(f"{what}: expected a mapping, found {printable(repr(state), 60)}")
    kinds = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            kinds[str(name)] = "like the parameter" if value.shape == parameter.shape and name != "step" else "scalar"
            if kinds[str(name)] == "scalar" and value.dim() != 0:
                shapes = f"{tuple(value.shape)}, the parameter {tuple(parameter.shape)}"
                raise CheckpointError(f"{what}: {printable(str(name))} has shape {shapes}")
            if name == "step" and not 0 <= float(value) <= steps:
                raise CheckpointError(f"{what}: step cannot be {float(value)} after {steps} steps")
        else:
            kinds[str(name)] = type(value).__name__
    return kinds
