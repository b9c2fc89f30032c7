"""Values from outside against a schema: what passes, and that what does not is one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import Field

from bnnedge.errors import DataError
from bnnedge.schema import check, check_plain, read_json


@dataclass(frozen=True)
class Point:
    x: Annotated[int, Field(ge=0, le=10)]
    y: tuple[float, ...] = ()


def test_plain_values_become_the_dataclass() -> None:
    assert check({"x": 3, "y": [1, 2.5]}, Point, "file", DataError) == Point(3, (1.0, 2.5))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"x": 11}, "file: x: input should be less than or equal to 10, found 11"),
        ({"x": True}, "found True"),
        ({"x": "3"}, "found '3'"),
        ({"y": []}, "file: x: the field is missing"),
        ({"x": 1, "y": [float("nan")]}, "finite"),
        ({"x": 1, "y": [b"x"]}, "bytes"),
        ([1], "file: input should be an object, found [1]"),
        ({"x": "\x1b[2J"}, "\\x1b"),
        ({"x": "9" * 10_000}, "…"),
    ],
)
def test_what_does_not_fit_is_one_line(value: Any, said: str) -> None:
    with pytest.raises(DataError, match="file") as caught:
        check(value, Point, "file", DataError)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", [b"[" * 100_000, b"9" * 5_000, b'"\xff"', b"[NaN]", b'{"a": 1', b""])
def test_damaged_json_is_one_line(text: bytes) -> None:
    with pytest.raises(DataError, match=r"file: expected JSON, found damage") as caught:
        read_json(text, "file", DataError)
    assert str(caught.value).isprintable()


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def shared(levels: int) -> Any:
    """A value of few objects that counts as 10^levels, as the aliases of YAML make it."""
    value: Any = 1
    for _ in range(levels):
        value = [value] * 10
    return value


def test_plain_values_pass() -> None:
    value = {"a": [1, -2.5, None, True, "text", (1, 2)], 3: {"b": 2**64 - 1}, "\udcff": nested(90)}
    check_plain(value, "file", DataError)
    check_plain({"a": b"x"}, "file", DataError, leaves=(bytes,))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": 2**64}, "more than 64 bits"),
        ({"a": 10**5000}, "more than 64 bits"),
        ([float("nan")], "nan"),
        ([float("inf")], "inf"),
        (["\ud800"], "not Unicode"),
        ([b"x"], "bytes"),
        ({(1, 2): 1}, "tuple"),
        ({None: 1}, "NoneType"),
        (nested(101), "nested at most 100"),
        (shared(9), "at most 1,000,000 values"),
        ({1, 2}, "set"),
    ],
)
def test_what_is_not_plain_is_one_line(value: Any, said: str) -> None:
    with pytest.raises(DataError, match="file: expected") as caught:
        check_plain(value, "file", DataError)
    assert said in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 200
