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
_LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)


class _Global:
    """A name in a module, as the pickle asks for it."""

    def __init__(self, module: str, name: str) -> None:
        self.name = f"{'numpy' if module in _PARTS_OF_NUMPY else module}.{name}"
        if self.name not in _MAKERS:
            raise ValueError(f"it asks for {printable(f'{module}.{name}', 100)}")


class _DType:
    """The type of an array's elements, before and after its byte order is known."""

    def __init__(self, code: Any, *_: Any) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(text, str) or np.dtype(text).kind not in "biuf":
            raise ValueError("it holds an array whose elements are no numbers")
        self.dtype = np.dtype(text)

    def build(self, state: Any) -> None:
        order: Any = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
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


def _encode(text: str, encoding: Any) -> bytes:
    """What Python 3 writes for bytes in old versions of the format."""
    return text.encode("latin1")


_MAKERS: dict[str, Callable[..., Any]] = {
    "numpy._reconstruct": _Array,
    "numpy._frombuffer": _Array.of,
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
    "_codecs.encode": _encode,
}


def read_pickled(data: bytes) -> Any:
    """The value that ``data`` holds; text of Python 2 is bytes.

    Arrays are values of dictionaries. Raises ``ValueError`` for anything else than plain values and arrays of numbers.
    """
    try:
        return _Machine().run(data)
    except ValueError:
        raise
    except Exception as error:  # a damaged pickle can ask for anything
        raise ValueError(f"it is damaged ({type(error).__name__})") from error


class _Machine:
    """Stack and memory of the pickle's program."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
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
            stack.append(_MAKERS[stack.pop().name](*arguments))
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
    return dict(zip(items[::2], items[1::2], strict=True))
