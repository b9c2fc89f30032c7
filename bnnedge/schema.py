"""The one place where what a file or a device says is checked, before anything uses it.

A schema is a type: a dataclass or a ``TypedDict`` whose annotations carry the ranges, e.g.
``Annotated[int, Field(ge=1, le=MOST_EPOCHS)]`` (pydantic's ``Field``). Values are taken strictly: a text is no number,
``true`` is no 1, NaN and infinity are no numbers.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from bnnedge.errors import BnnedgeError, printable

T = TypeVar("T")


def read_json(text: bytes | str, what: str, error: type[BnnedgeError]) -> Any:
    """Return the value that the JSON ``text`` holds.

    Raises ``error``, which begins with ``what``, for damaged JSON, bytes that are not UTF-8, nesting deeper than 200
    and numbers of more than 4,300 digits.
    """
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as damage:
        raise error(f"{what}: expected JSON, found damage: {printable(str(damage))}") from damage


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
