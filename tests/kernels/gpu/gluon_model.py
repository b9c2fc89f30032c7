"""Runs the Gluon kernels of the 1-bit tensor cores in NumPy: Triton's interpreter knows neither Gluon nor assembly.

The kernels' own Python is executed, program by program, with the Gluon language replaced by a model:

- a tensor is a NumPy array and layouts are ignored, but for the assembly: each lane gets the registers that the work
  layout gives it, and the instruction is that of the PTX ISA (``mma_m16n8k256``);
- a pointer is a buffer and indices; a load or store outside of its buffer is an error;
- shared memory starts as garbage. A copy lands either at once or as late as ``wait_group`` allows; a kernel that reads
  a stage too early or overwrites it too early is wrong in one of the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from triton.experimental.gluon import language as gl
from triton.runtime.jit import JITFunction

from bnnedge.kernels.gpu import bmma

KINDS = {gl.int32: np.int64, gl.int64: np.int64, gl.float32: np.float32, gl.float16: np.float16}
BYTE_COUNTS = np.array([bin(byte).count("1") for byte in range(256)], np.int64)


def popcount(words: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Bits that are 1 in each word."""
    octets = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, 4)
    counts: NDArray[np.int64] = BYTE_COUNTS[octets].sum(-1)
    return counts


def mma_m16n8k256(a: NDArray[np.uint32], b: NDArray[np.uint32], c: NDArray[np.int64]) -> NDArray[np.int64]:
    """One instruction, from the PTX ISA: ``a`` and ``c`` [..., lanes, 4], ``b`` [..., lanes, 2]; the new ``c``."""
    group, thread = np.arange(32) >> 2, np.arange(32) % 4
    left, right = np.zeros((*a.shape[:-2], 16, 8), np.uint32), np.zeros((*b.shape[:-2], 8, 8), np.uint32)
    for i in range(4):  # 32 elements of K each: rows of the group for i in (0, 2), first half of K for i < 2
        left[..., group if i in (0, 2) else group + 8, thread if i < 2 else thread + 4] = a[..., i]
    for i in range(2):
        right[..., group, thread if i == 0 else thread + 4] = b[..., i]
    common: NDArray[np.uint32] = np.bitwise_and(left[..., :, None, :], right[..., None, :, :], dtype=np.uint32)
    both = popcount(common).sum(-1)
    added = [both[..., group if i < 2 else group + 8, 2 * thread + (i & 1)] for i in range(4)]
    new: NDArray[np.int64] = c + np.stack(added, axis=-1)
    return new


def run_assembly(text: str, a: NDArray[np.uint32], b: NDArray[np.uint32], c: NDArray[np.int64]) -> NDArray[np.int64]:
    """``bmma.mma_assembly`` for warps of 32 lanes with 8 registers of each operand, [..., lanes, 8]."""
    c = np.array(c)
    for line in text.splitlines():
        assert line.startswith("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc ")
        groups = [[int(number) for number in re.findall(r"\$(\d+)", group)] for group in re.findall(r"{(.*?)}", line)]
        out, left, right, into = groups
        assert out == into
        c[..., out] = mma_m16n8k256(a[..., np.array(left) - 8], b[..., np.array(right) - 16], c[..., into])
    return c


class Tensor(np.ndarray[Any, Any]):
    """An array with the methods that Gluon has and NumPy has not."""

    type = SimpleNamespace(layout=None)

    def to(self, kind: Any) -> Tensor:
        return tensor(self.astype(KINDS[kind]))

    def permute(self, order: tuple[int, ...]) -> Tensor:
        return tensor(self.transpose(order))


def tensor(values: Any) -> Tensor:
    return np.asarray(values).view(Tensor)


@dataclass
class Pointer:
    """Elements ``at`` of a flat buffer of Gluon type ``kind``."""

    buffer: NDArray[Any]
    kind: Any
    at: Any = 0

    @property
    def dtype(self) -> Any:
        return SimpleNamespace(element_ty=self.kind)

    def __add__(self, offset: Any) -> Pointer:
        return Pointer(self.buffer, self.kind, self.at + offset)

    def __getitem__(self, index: Any) -> Pointer:
        return Pointer(self.buffer, self.kind, self.at[index])

    def places(self, mask: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        at, mask = np.broadcast_arrays(self.at, mask)
        assert ((at >= 0) & (at < len(self.buffer)))[mask].all(), "outside of the buffer"
        return at, mask


@dataclass
class Shared:
    """Shared memory, and views of it."""

    words: NDArray[np.uint32]

    def index(self, stage: int) -> Shared:
        return Shared(self.words[stage])

    def slice(self, start: int, length: int, dim: int) -> Shared:
        assert dim == 1
        return Shared(self.words[:, start : start + length])

    def load(self, layout: Any) -> Tensor:
        return tensor(self.words.copy())


class Machine:
    """What one thread block sees of the GPU."""

    def __init__(self, late: bool) -> None:
        self.late = late
        self.program = 0
        self.copies: list[Callable[[], None]] = []
        self.groups: list[list[Callable[[], None]]] = []
        self.bound: dict[Any, Callable[..., Any]] = {}

    def async_load(self, shared: Shared, source: Pointer, mask: Any) -> None:
        at, mask = source.places(mask)
        assert shared.words.shape == at.shape
        words = np.where(mask, source.buffer[np.where(mask, at, 0)], 0).astype(np.uint32)

        def land() -> None:
            shared.words[...] = words

        if self.late:
            self.copies.append(land)
        else:
            land()

    def commit_group(self) -> None:
        self.groups.append(self.copies)
        self.copies = []

    def wait_group(self, outstanding: int) -> None:
        while len(self.groups) > outstanding:
            for land in self.groups.pop(0):
                land()

    def allocate(self, kind: Any, shape: list[int], layout: Any) -> Shared:
        assert kind is gl.int32
        return Shared(np.random.default_rng(self.program).integers(0, 2**32, shape, dtype=np.uint32))

    def assembly(self, text: Any, constraints: Any, args: list[Tensor], dtype: Any, is_pure: bool, pack: int) -> Tensor:
        assert constraints.value == bmma.mma_constraints() and pack == bmma.REGISTERS
        a, b, sums = (np.broadcast_to(x, args[2].shape) for x in args)
        return tensor(run_assembly(text.value, a, b, sums))

    def load(self, pointer: Pointer, mask: Any, other: Any) -> Tensor:
        at, mask = pointer.places(mask)
        return tensor(np.where(mask, pointer.buffer[np.where(mask, at, 0)], other))

    def store(self, pointer: Pointer, value: Tensor, mask: Any) -> None:
        at, mask = pointer.places(mask)
        pointer.buffer[at[mask]] = np.broadcast_to(value, at.shape)[mask]

    def atomic_add(self, pointer: Pointer, value: Tensor, mask: Any, sem: str) -> None:
        at, mask = pointer.places(mask)
        np.add.at(pointer.buffer, at[mask], value[mask])

    def language(self) -> SimpleNamespace:
        """A stand-in for ``triton.experimental.gluon.language``."""
        return SimpleNamespace(
            int32=gl.int32,
            int64=gl.int64,
            float32=gl.float32,
            constexpr=gl.constexpr,
            static_range=range,
            program_id=lambda axis: self.program,
            cdiv=lambda a, b: -(-a // b),
            minimum=np.minimum,
            where=lambda condition, a, b: tensor(np.where(condition, a, b)),
            sum=lambda x, axis: tensor(x.sum(axis)),
            arange=lambda start, end, layout: tensor(np.arange(start, end)),
            full=lambda shape, value, kind, layout: tensor(np.full(shape, value, KINDS[kind])),
            convert_layout=lambda x, layout, assert_trivial=False: x,
            allocate_shared_memory=self.allocate,
            inline_asm_elementwise=self.assembly,
            load=self.load,
            store=self.store,
            atomic_add=self.atomic_add,
            **dict.fromkeys(("SliceLayout", "BlockedLayout"), lambda *arguments: None),
        )

    def bind(self, kernel: Any) -> Callable[..., Any]:
        """The Python function of a kernel, every name of its module that means the GPU replaced by the model."""
        if kernel in self.bound:
            return self.bound[kernel]
        names: dict[str, Any] = dict(kernel.fn.__globals__)
        self.bound[kernel] = FunctionType(kernel.fn.__code__, names)
        for name in set(kernel.fn.__code__.co_names) & set(names):
            value = names[name]
            if isinstance(value, JITFunction):
                names[name] = self.bind(value)
            elif name.endswith("_layout"):
                names[name] = lambda *arguments: None
            elif isinstance(value, gl.constexpr) and not isinstance(value.value, str):
                names[name] = value.value
        copies = {name: getattr(self, name) for name in ("async_load", "commit_group", "wait_group")}
        names |= {"gl": self.language(), "barrier": lambda: None, **copies}
        return self.bound[kernel]


def launch(kernel: Any, programs: int, late: bool, *arguments: Any, **constants: Any) -> None:
    """Runs all programs, the last one first."""
    machine = Machine(late)
    function = machine.bind(kernel)
    for program in reversed(range(programs)):
        machine.program = program
        function(*arguments, **constants)
        assert not machine.copies and not any(machine.groups), "copies that nobody waited for"
