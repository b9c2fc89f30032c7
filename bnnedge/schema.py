"""The one place where what a file or a device says is checked, before anything uses it.

A schema is a type: a dataclass or a ``TypedDict`` whose annotations carry the ranges, e.g.
``Annotated[int, Field(ge=1, le=MOST_EPOCHS)]`` (pydantic's ``Field``). Values are taken strictly: a text is no number,
``true`` is no 1, NaN and infinity are no numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable
from functools import cache
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from bnnedge.errors import BnnedgeError, printable

T = TypeVar("T")

Number = Annotated[float, Field(ge=-1e100, le=1e100)]
"""A number that can be printed, drawn and computed with."""
MOST_VALUES = 1_000_000
"""Most values in one structure; those that it holds several times, as YAML and pickle allow, count each time."""
MOST_DEPTH = 100
"""Deepest nesting of lists and mappings."""


def read_json(text: bytes | str, what: str, error: type[BnnedgeError]) -> Any:
    """Return the value that the JSON ``text`` holds.

    Raises ``error``, which begins with ``what``, for damaged JSON, bytes that are not UTF-8, nesting deeper than 200
    and numbers of more than 4,300 digits.
    """
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as damage:
        raise error(f"{what}: expected JSON, found damage: {printable(str(damage))}") from damage


def check_plain(value: Any, what: str, error: type[BnnedgeError], *, leaves: tuple[type, ...] = ()) -> None:
    """Raise ``error``, which begins with ``what``, unless ``value`` consists of plain values only.

    Those are None, booleans, integers of 64 bits, finite floats, text, lists, tuples, mappings from text or integers,
    and instances of just the types ``leaves``; of at most ``MOST_VALUES`` values, nested at most ``MOST_DEPTH`` deep.
    """
    waiting, seen = [(value, 0)], 0
    while waiting:
        found, depth = waiting.pop()
        seen += 1
        if isinstance(found, dict | list | tuple):
            if depth == MOST_DEPTH or seen + len(waiting) + len(found) > MOST_VALUES:
                raise error(
                    f"{what}: expected at most {MOST_VALUES:,} values nested at most {MOST_DEPTH} deep, found more"
                )
            if isinstance(found, dict):
                for name in found:
                    odd = _oddity(name) if type(name) in (str, int) else type(name).__name__
                    if odd:
                        raise error(f"{what}: expected names of text, found {odd}")
                found = found.values()
            waiting += [(below, depth + 1) for below in found]
        elif type(found) not in leaves and (odd := _oddity(found)):
            raise error(f"{what}: expected finite numbers, text, lists and mappings, found {odd}")


def _oddity(value: Any) -> str:
    """What is wrong with a single value; empty if nothing is."""
    if type(value) is int:
        return "" if -(2**63) <= value < 2**64 else "a number of more than 64 bits"
    if type(value) is float:
        return "" if math.isfinite(value) else str(value)
    if type(value) is str:
        try:
            value.encode("utf-8", "surrogateescape")  # as Python has paths that are not UTF-8
        except UnicodeEncodeError:
            return "text that is not Unicode"
        return ""
    return "" if value is None or type(value) is bool else type(value).__name__


def check(value: Any, schema: type[T], what: str, error: type[BnnedgeError]) -> T:
    """Return ``value``, plain values as JSON, YAML or a checkpoint holds them, as an instance of ``schema``.

    Lists become tuples where the schema has tuples. Raises ``error``, which begins with ``what`` and names the field,
    what was expected and what was found, for the first value that does not fit; also for a number that is not finite
    and for a value that is not plain.
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as failure:
        raise error(
            f"{what}: expected finite numbers, text, lists and mappings; {printable(str(failure))}"
        ) from failure
    try:
        checked: T = _adapter(cast(Hashable, schema)).validate_json(text, strict=True)
    except ValidationError as mismatch:
        raise error(f"{what}: {_described(mismatch)}") from mismatch
    return checked


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _described(mismatch: ValidationError) -> str:
    first = mismatch.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    name = f"{printable(field)}: " if field else ""
    if first["type"] == "missing":
        return f"{name}the field is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{name}{message[:1].lower()}{message[1:]}, found {printable(repr(first['input']), most=60)}"
