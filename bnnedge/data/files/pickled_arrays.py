"""A reader of pickled lists, dictionaries, texts and NumPy arrays that runs nothing of what a pickle asks for.

A pickle is a program for a stack machine, which may call any function of Python; ``pickle.load`` obeys. Here the
program's steps are read by ``pickletools`` and only those are followed that plain values and arrays are made of.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnedge.errors import printable

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_PARTS_OF_NUMPY = tuple(f"numpy.{core}.{part}" for core in ("core", "_core") for part in ("multiarray", "numeric"))
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STEPS_WITHOUT_EFFECT = ("PROTO", "FRAME")
_BYTES_OF_PYTHON_2 = ("STRING", "BINSTRING", "SHORT_BINSTRING")
MOST_STEPS = 2**20
"""Steps of a program, of which the largest published file takes a quarter."""
_LONGEST_TYPE = 8
"""Characters of the name of an array's type, such as u1."""
_LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)


class _Global:
    """A name in a module, as the pickle asks for it."""

    def __init__(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("it asks for something whose name is no text")
        self.name = f"{'numpy' if module in _PARTS_OF_NUMPY else module}.{name}"
        if self.name not in _MAKERS and self.name != _ENCODE:
            raise ValueError(f"it asks for {printable(f'{module}.{name}', 100)}")


class _DType:
    """The type of an array's elements, before and after its byte order is known."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.dtype = np.dtype(_short_text(code))
        if self.dtype.kind not in "biuf":
            raise ValueError("it holds an array whose elements are no numbers")

    def build(self, state: Any) -> None:
        order: Any = _short_text(state[1])
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An array, before and after its elements are known."""

    def __init__(self, *_: Any) -> None:
        self.values: NDArray[Any] = np.empty(0)

    @classmethod
    def of(cls, data: bytes, dtype: _DType, shape: Any, order: str = "C") -> _Array:
        array = cls()
        array.values = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
        return array

    def build(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.values = _Array.of(data, dtype, shape, "F" if is_fortran else "C").values


def _short_text(value: Any) -> str:
    """A type's name or its byte order. Whoever asks a hundred thousand times for a long one would wait for ever."""
    if not isinstance(value, str | bytes) or len(value) > _LONGEST_TYPE:
        raise ValueError("it holds an array whose elements are no numbers")
    return value.decode("ascii") if isinstance(value, bytes) else value


class _Encode:
    """Text as bytes, as Python 3 writes them in old versions of the format."""

    def __init__(self, most: int) -> None:
        """``most`` is how many bytes there may be in all; no text of an honest file is made bytes of twice."""
        self.left = most

    def __call__(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or len(text) > self.left:
            raise ValueError("it holds more bytes than the file has")
        self.left -= len(text)
        return text.encode("latin1")


_ENCODE = "_codecs.encode"
_MAKERS: dict[str, Callable[..., Any]] = {
    "numpy._reconstruct": _Array,
    "numpy._frombuffer": _Array.of,
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
}
_MOST_ARGUMENTS = 4
"""Arguments of a maker."""


def read_pickled(data: bytes) -> Any:
    """The value that ``data`` holds; text of Python 2 is bytes.

    Arrays are values of dictionaries. Raises ``ValueError`` for anything else than plain values and arrays of numbers.
    Lists and tuples of the value may hold each other several times, so to print or compare it may take for ever.
    """
    try:
        return _Machine(data).run()
    except ValueError:
        raise
    except Exception as error:  # a damaged pickle can ask for anything
        raise ValueError(f"it is damaged ({type(error).__name__})") from error


class _Machine:
    """Stack and memory of the pickle's program."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.makers = _MAKERS | {_ENCODE: _Encode(len(data))}
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(self.data)):
            if step == MOST_STEPS:
                raise ValueError(f"expected at most {MOST_STEPS:,} steps, found more")
            if opcode.name == "STOP":
                return self._finished(self.stack.pop())
            if opcode.name not in _STEPS_WITHOUT_EFFECT:
                self._step(opcode.name, argument)
        raise ValueError("it is cut off")

    def _step(self, name: str, argument: Any) -> None:
        stack, memo = self.stack, self.memo
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("TUPLE", "LIST", "DICT"):
            items = self._since_mark()
            stack.append(tuple(items) if name == "TUPLE" else items if name == "LIST" else _pairs(items))
        elif name == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif name == "APPENDS":
            items = self._since_mark()
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(_pairs(items))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            module, attribute = argument.split(" ") if name == "GLOBAL" else (stack.pop(-2), stack.pop())
            stack.append(_Global(module, attribute))
        elif name == "REDUCE":
            arguments = stack.pop()
            if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
                raise ValueError("it makes an array of something else than an array's parts")
            stack.append(self.makers[stack.pop().name](*arguments))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].build(state)
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _BYTES_OF_PYTHON_2:
            stack.append(argument.encode("latin1"))
        else:
            raise ValueError(f"it takes the step {name}, which no plain value needs")

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _finished(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: item.values if isinstance(item, _Array) else item for key, item in value.items()}
        return value.values if isinstance(value, _Array) else value


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if not all(isinstance(key, str | bytes) for key in items[::2]):
        raise ValueError("it holds a dictionary whose keys are no text")
    return dict(zip(items[::2], items[1::2], strict=True))
