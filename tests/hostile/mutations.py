"""Seeded damage: to bytes, as a bad disk or a hostile hand does it, and to values inside of a structure."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from random import Random
from typing import Any

_DEEP: Any = []
for _ in range(200):  # what YAML and pickle can still write
    _DEEP = [_DEEP]

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    7,
    2**31,
    10**12,
    10**30,
    10**400,
    -(2**63),
    0.5,
    -0.0,
    1e-320,
    1.5e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "5",
    "x" * 10_000,
    "9" * 5_000,
    "\x1b[2J\x1b]0;title\x07",
    "[/nope]",
    "a$_$b",
    "\ud800",
    "canary.py:Net",
    "../../../../etc/passwd",
    "/dev/zero",
    [],
    {},
    [1],
    [None],
    ["x"] * 3,
    [1] * 70,
    [0] * 20_000,
    [10**9, 10**9, 10**9],
    {"x": 1},
    _DEEP,
)
"""Values of wrong types, sizes, ranges and depths, and texts that must not be followed, run or printed as they are."""


def damage_bytes(data: bytes, random: Random) -> bytes:
    """``data`` with one kind of damage somewhere."""
    changed = bytearray(data)
    at = random.randrange(len(data))
    length = min(random.choice((1, 2, 4, 64, 4096)), len(data) - at)
    kind = random.choice(("flip", "flip", "flip", "flips", "cut", "zeros", "ones", "noise", "remove", "repeat", "tail"))
    if kind == "flip":
        changed[at] ^= 1 << random.randrange(8)
    elif kind == "flips":
        for _ in range(random.randrange(2, 40)):
            changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif kind == "cut":
        del changed[at:]
    elif kind == "zeros":
        changed[at : at + length] = bytes(length)
    elif kind == "ones":
        changed[at : at + length] = b"\xff" * length
    elif kind == "noise":
        changed[at : at + length] = random.randbytes(length)
    elif kind == "remove":
        del changed[at : at + length]
    elif kind == "repeat":
        changed[at:at] = changed[at : at + length]
    else:
        changed += random.randbytes(length)
    return bytes(changed)


def damage_value(value: Any, random: Random) -> Any:
    """A copy of ``value``, nested lists, tuples and dicts, of which one part is another, gone, doubled or renamed."""
    changed = copy.deepcopy(value)
    places = list(_places(changed))
    if not places:
        return copy.deepcopy(random.choice(HOSTILE))
    holder, key = random.choice(places)
    kind = random.choice(("replace", "replace", "replace", "remove", "rename", "swap"))
    if kind == "replace":
        holder[key] = copy.deepcopy(random.choice(HOSTILE))
    elif kind == "remove":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[random.choice(("x", "", "__class__", "format_version"))] = holder.pop(key)
    else:
        other, name = random.choice(places)
        if not _holds(other[name], holder):  # what held itself could not be written
            holder[key] = copy.deepcopy(other[name])
    return changed


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container below ``value`` that can be changed, with each of its keys."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(min(len(value), 20)))
    else:
        return
    for key in keys:
        below = value[key]
        yield value, key
        yield from _places(below)


def _holds(value: Any, part: Any) -> bool:
    return value is part or any(below[key] is part for below, key in _places(value))
