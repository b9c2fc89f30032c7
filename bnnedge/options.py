"""Options: a dataclass filled from text, turned into plain values, and the sentence under each of its fields."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from bnnedge.errors import ConfigError

T = TypeVar("T")


def fill(cls: type[T], values: Mapping[str, Any], owner: str) -> T:
    """Return an instance of the dataclass ``cls`` made from ``values``, each converted to its field's annotation.

    ``owner`` names the dataclass in messages. Raises ``ConfigError`` for an unknown name, listing the known ones, and
    for a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ConfigError(f"{owner} has no option {name!r}; it has: {', '.join(known) or 'none'}")
    return cls(**{name: convert(name, value, hints[name]) for name, value in values.items()})


def convert(name: str, value: Any, annotation: Any) -> Any:
    """Return ``value``, which may be text, as the type ``annotation``.

    The annotation is bool, int, float, str, a Literal, ``tuple[X, ...]`` (text: ``10,20`` or, for sizes, ``32x64``; a
    single value stands for a tuple of one), dict, or a union of these, of which the first that fits is taken, None and
    Literals before the others. Raises ``ConfigError``, which begins with ``name``, for a value of the wrong type.
    """
    try:
        return _convert(value, annotation)
    except _MismatchError as mismatch:
        raise ConfigError(f"{name} must be {mismatch}, got {value!r}") from None


def plain(options: Any) -> dict[str, Any]:
    """Return a dataclass as a dict whose tuples are lists, which is how YAML and JSON give them back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(options).items()}


def field_docs(cls: type[Any]) -> dict[str, str]:
    """Return the sentence under each field of a dataclass and of its bases, by field name, read from their source."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            definition = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
            assert isinstance(definition, ast.ClassDef)
            docs |= sentences(definition)
    return docs


def sentences(definition: ast.ClassDef) -> dict[str, str]:
    """Return the string under each annotated name of a parsed class, by name, with its lines joined."""
    docs = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


class _MismatchError(Exception):
    """A value that does not have the wanted type; the message says what that type is, e.g. "a whole number"."""


_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", dict: "a mapping"}


def _convert(value: Any, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _convert_to_union(value, arguments)
    if origin is Literal:
        if value not in arguments:
            raise _MismatchError(f"one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        try:
            return tuple(_convert(item, arguments[0]) for item in _items(value, "[,x]" if arguments[0] is int else ","))
        except _MismatchError as mismatch:
            raise _MismatchError(f"{mismatch}, or several with commas between") from None
    return _convert_scalar(value, dict if origin is dict else kind)


def _convert_to_union(value: Any, kinds: tuple[Any, ...]) -> Any:
    if type(None) in kinds and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
        return None
    origins: list[Any] = [typing.get_origin(kind) for kind in kinds]
    literals = [kind for kind, origin in zip(kinds, origins, strict=True) if origin is Literal]
    others = [kind for kind in kinds if kind not in literals and kind is not type(None)]
    expected = []
    for kind in [*literals, *others]:  # every text would pass as a str
        try:
            return _convert(value, kind)
        except _MismatchError as mismatch:
            expected.append(str(mismatch))
    raise _MismatchError(", or ".join(expected))


def _items(value: Any, separator: str) -> list[Any]:
    """Return the elements that a value stands for where a tuple is wanted; ``separator`` is a pattern."""
    if isinstance(value, str):
        return re.split(separator, value) if value.strip() else []
    return list(value) if isinstance(value, list | tuple) else [value]


def _convert_scalar(value: Any, kind: Any) -> Any:
    if kind is bool and isinstance(value, str) and value.lower() in _BOOLEANS:
        return _BOOLEANS[value.lower()]
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = kind(value)
            finite = math.isfinite(number)
        except (TypeError, ValueError, OverflowError):
            number, finite = None, False
        # int(2.5) is 2: a fraction is not silently cut off.
        if finite and (isinstance(value, str) or number == value):
            return number
    elif kind is dict and isinstance(value, dict):
        return {str(k): v for k, v in value.items()}
    elif kind in (bool, str) and type(value) is kind:
        return value
    raise _MismatchError(_TYPE_NAMES.get(kind, str(kind)))
