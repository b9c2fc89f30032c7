"""Custom operators whose arguments are the fields of a dataclass.

PyTorch calls an operator, and the function that tells ``torch.compile`` the shapes of its results, with a flat list of
arguments. That list is written once, as a dataclass, and both functions take one object of it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_type_hints

import torch
from torch.library import CustomOpDef  # type: ignore[attr-defined]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def on_device_of_first(function: _Function) -> _Function:
    """Runs ``function`` on the GPU of its first argument: Triton launches on the current one whatever its arguments."""

    @functools.wraps(function)
    def guarded(*arguments: Any, **named: Any) -> Any:
        with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
            return function(*arguments, **named)

    # PyTorch would look for types that are written as text in this module.
    guarded.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
    return guarded  # type: ignore[return-value]


def flat(function: Callable[[Any], Any]) -> Callable[..., Any]:
    """``function``, which takes one dataclass, as a function of the fields in their order and with their defaults.

    Its signature, from which PyTorch makes the operator's schema, has the types of the fields.
    """
    hints = get_type_hints(function)
    (kind,) = (hint for name, hint in hints.items() if name != "return")
    types = get_type_hints(kind)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=types[field.name],
        )
        for field in fields(kind)
    ]

    def of_fields(*arguments: Any, **named: Any) -> Any:
        return function(kind(*arguments, **named))

    of_fields.__signature__ = inspect.Signature(parameters, return_annotation=hints["return"])  # type: ignore[attr-defined]
    return of_fields


def operator(name: str) -> Callable[[Callable[[Any], Any]], CustomOpDef]:
    """Decorator: a function of one dataclass becomes the operator ``name``, on the GPU of the first field."""

    def define(function: Callable[[Any], Any]) -> CustomOpDef:
        return torch.library.custom_op(name, on_device_of_first(flat(function)), mutates_args=())

    return define


def shapes_of(defined: CustomOpDef) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Decorator: a function of the same dataclass gives uninitialised results of the operator's shapes and types."""

    def register(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        defined.register_fake(flat(function))
        return function

    return register
