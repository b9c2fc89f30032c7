"""What a model's inputs and outputs are called."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn
from torch.utils import _pytree as pytree

from bnnedge.errors import ExportError

T = TypeVar("T")
ONLY_INPUT = "input"
"""What the input of a model is called that takes one tensor."""


def named_inputs(model: nn.Module, given: T | Sequence[T] | Mapping[str, T]) -> dict[str, T]:
    """The arguments of ``model.forward`` by name, in its order.

    ``given`` is one tensor, a tuple or list of them in order, or a mapping by the names of forward's arguments. A
    single tensor is called ``input``. Raises ``ExportError`` if forward does not take them.
    """
    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = {}
    if isinstance(given, Mapping):
        named = dict(given)
    else:
        positional = tuple(given) if isinstance(given, tuple | list) else (given,)
    if len(positional) == 1:
        return {ONLY_INPUT: positional[0]}
    try:
        bound = inspect.signature(model.forward).bind(*positional, **named)
    except TypeError as error:
        raise ExportError(f"the inputs given do not fit forward of {type(model).__name__}: {error}") from error
    if bound.kwargs or not bound.args:
        keywords = ", ".join(bound.kwargs) or "none"
        raise ExportError(
            f"forward of {type(model).__name__} must take the inputs by position; it takes by keyword alone: {keywords}"
        )
    names = list(bound.arguments)
    if len(names) != len(bound.args):  # forward(self, *tensors)
        names = [f"{ONLY_INPUT}_{index}" for index in range(len(bound.args))]
    return dict(zip(names, bound.args, strict=True))


def output_names(spec: pytree.TreeSpec) -> tuple[str | None, ...]:
    """The name of each tensor that a traced model returns; None for a model that returns one without a name.

    The keys of a dict are names; the tensors of a tuple or list are ``output_0``, ``output_1``, ...
    """
    result = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)  # the model's result with numbers for tensors
    tensors = output_tensors(result)
    if not tensors or not all(isinstance(tensor, int) for tensor in tensors):
        raise ExportError("a model must return a tensor, or a tuple, list or dict of tensors that is not nested")
    if isinstance(result, Mapping):
        return tuple(map(str, result))
    return (None,) if len(tensors) == 1 else tuple(f"output_{index}" for index in range(len(tensors)))


def output_tensors(result: Any) -> list[Any]:
    """What a model returned, as a list in the order of ``output_names``."""
    if isinstance(result, Mapping):
        return list(result.values())
    return list(result) if isinstance(result, tuple | list) else [result]
