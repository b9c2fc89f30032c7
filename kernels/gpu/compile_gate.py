"""Compiles every GPU kernel for every target and reads the machine code: what can be proven of it without a GPU.

Triton compiles 500 KB of shared memory, kilobytes of register spills or a lost 16-byte load without a word. So each
op file lists its launches as ``COMPILE_CASES``; the gate compiles them with the ptxas and reads the SASS with the
cuobjdump that Triton ships, and reports per (case, target) the registers, spills, shared memory and instructions, and
every expectation that failed.

    python -m bnnedge.kernels.gpu.compile_gate [--quick] [--only TEXT] [--output FILE]

prints the table (Markdown) and exits with 1 if a check failed. An NVIDIA GPU, its driver and CUDA are not needed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from bnnedge.errors import ConfigError, MissingDependencyError
from bnnedge.files import write_output

OPS = (
    "bnnedge.kernels.gpu.bmma_gemm",
    "bnnedge.kernels.gpu.bmma_conv2d",
    "bnnedge.kernels.gpu.int8_dot",
    "bnnedge.kernels.gpu.xnor_gemm",
    "bnnedge.kernels.gpu.bconv2d",
    "bnnedge.kernels.gpu.conv_launch",
    "bnnedge.kernels.gpu.pack",
    "bnnedge.kernels.gpu.bn_statistics",
    "bnnedge.kernels.gpu.bn_clip_pack",
    "bnnedge.kernels.gpu.bn_gradient",
    "bnnedge.kernels.gpu.unpack",
)
"""The modules whose ``COMPILE_CASES`` are compiled."""

_KB = 1024
SHARED_LIMIT_BYTES = {
    **{80: 163 * _KB, 86: 99 * _KB, 89: 99 * _KB, 90: 227 * _KB},
    **{100: 227 * _KB, 103: 227 * _KB, 120: 99 * _KB},
}
"""Most shared memory that one block may ask for, by compute capability (CUDA programming guide)."""

REGISTERS_PER_SM = 65536

COLUMNS = (
    "BMMA",
    "IGMMA",
    "IMMA",
    "QGMMA",
    "HMMA",
    "LDSM",
    "LDGSTS.128",
    "LDG.128",
    "STG.128",
    "POPC",
    "REDG",
    "ATOMG",
)
"""Instructions that the table counts."""


@dataclass(frozen=True)
class CompileCase:
    """One launch of one kernel: what Triton specialises on, and what the machine code must then hold.

    An instruction is named by its opcode and any of its modifiers in any order: ``LDG.128`` counts ``LDG.E.128`` and
    ``LDG.E.EF.128.CONSTANT``.
    """

    name: str
    """A unique name of the form ``op/configuration``."""
    kernel: Any
    """The ``@triton.jit`` or ``@gluon.jit`` function."""
    arguments: Mapping[str, str]
    """The Triton type of each run-time argument, such as ``*bf16``, ``*i32``, ``i32``, ``i64``, ``fp32``."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """``tl.constexpr`` arguments; also arguments that launches specialise to a constant (1, None)."""
    aligned: tuple[str, ...] = ()
    """Integer arguments that are multiples of 16 in this launch. Pointers always are, torch aligns them."""
    num_warps: int = 4
    num_stages: int = 3
    targets: tuple[int, ...] = (80, 89, 90)
    """Compute capabilities to compile for."""
    at_least: Mapping[str, int] = field(default_factory=dict)
    """Least number of each instruction in the whole kernel; 0 forbids the instruction."""
    in_loop: Mapping[str, int] = field(default_factory=dict)
    """Exact number of each instruction in the main loop, which is the loop with most of the first one named."""
    blocks_per_sm: int = 1
    """Blocks that are meant to run side by side: registers and shared memory must allow for it."""
    quick: bool = False
    """Whether the default test suite compiles it; ``make test-slow`` compiles the others."""


@dataclass(frozen=True)
class CompileRow:
    """What one case compiled to for one target."""

    name: str
    target: int
    registers: int
    spill_bytes: int
    """Bytes of stack and local memory that one thread uses."""
    shared_bytes: int
    instructions: dict[str, int]
    """Number of each instruction of ``COLUMNS`` in the kernel."""
    loop: dict[str, int]
    """Number of each instruction of ``COLUMNS`` in the main loop; empty where the case names none."""
    failures: tuple[str, ...]


def cases(only: str = "", quick: bool = False) -> list[CompileCase]:
    """The cases of all ops whose name contains ``only``; with ``quick`` those of the default test suite."""
    found = [case for op in OPS for case in import_module(op).COMPILE_CASES]
    names = Counter(case.name for case in found)
    for name, count in names.items():
        if count > 1:
            raise ConfigError(f"{count} compile cases are called {name}; give each its own name")
    return [case for case in found if only in case.name and (case.quick or not quick)]


def check(case: CompileCase, target: int) -> CompileRow:
    """Compiles ``case`` for compute capability ``target`` and checks all that it expects."""
    compiled = _compile(case, target)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = _cuobjdump("-res-usage", cubin.name)
        code = list(_instructions(_cuobjdump("-sass", cubin.name)))
    resources = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    opcodes = [opcode for _, opcode, _ in code]
    body = _main_loop(code, next(iter(case.in_loop))) if case.in_loop else []
    row = CompileRow(
        name=case.name,
        target=target,
        registers=resources["REG"],
        spill_bytes=resources["STACK"] + resources["LOCAL"],
        shared_bytes=compiled.metadata.shared,
        instructions={name: count_of(opcodes, name) for name in COLUMNS},
        loop={name: count_of(body, name) for name in (*case.in_loop, *COLUMNS)} if case.in_loop else {},
        failures=(),
    )
    return CompileRow(**{**vars(row), "failures": tuple(_failures(case, row, opcodes, body))})


def count_of(opcodes: Iterable[str], name: str) -> int:
    """How many of ``opcodes`` have the opcode and all the modifiers of ``name``."""
    opcode, *modifiers = name.split(".")
    parts = (candidate.split(".") for candidate in opcodes)
    return sum(found == opcode and set(modifiers) <= set(rest) for found, *rest in parts)


def _failures(case: CompileCase, row: CompileRow, opcodes: list[str], body: list[str]) -> Iterator[str]:
    spills = count_of(opcodes, "STL") + count_of(opcodes, "LDL")
    if row.spill_bytes or spills:
        yield f"spills: {row.spill_bytes} bytes a thread, {spills} local loads and stores"
    threads = 32 * case.num_warps * case.blocks_per_sm
    if row.registers * threads > REGISTERS_PER_SM:
        yield f"{row.registers} registers x {threads} threads exceed {REGISTERS_PER_SM}"
    if row.shared_bytes * case.blocks_per_sm > SHARED_LIMIT_BYTES[row.target]:
        yield f"{row.shared_bytes} bytes shared x {case.blocks_per_sm} exceed {SHARED_LIMIT_BYTES[row.target]}"
    for name, least in case.at_least.items():
        found = count_of(opcodes, name)
        if found < least or (least == 0 and found):
            yield f"{found} {name}, expected {least if least == 0 else f'at least {least}'}"
    for name, expected in case.in_loop.items():
        found = count_of(body, name)
        if found != expected:
            yield f"{found} {name} in the loop, expected {expected}"


def _compile(case: CompileCase, target: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    kernel = case.kernel
    if not isinstance(kernel, triton.JITFunction):
        raise ConfigError(f"{case.name}: the kernel is interpreted; unset TRITON_INTERPRET to compile it")
    missing = set(kernel.arg_names) ^ (set(case.arguments) | set(case.constants))
    if missing or set(case.arguments) & set(case.constants):
        raise ConfigError(f"{case.name}: arguments that are missing, unknown or given twice: {sorted(missing)}")
    source = (GluonASTSource if kernel.is_gluon() else ASTSource)(
        fn=kernel,
        signature={name: case.arguments.get(name, "constexpr") for name in kernel.arg_names},
        constexprs=dict(case.constants),
        attrs={
            (position,): [["tt.divisibility", 16]]
            for position, name in enumerate(kernel.arg_names)
            if name in case.aligned or case.arguments.get(name, "").startswith("*")
        },
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def _cuobjdump(option: str, path: str) -> str:
    from triton import knobs

    try:
        tool = knobs.nvidia.cuobjdump.path
    except RuntimeError as error:
        raise MissingDependencyError(f"no cuobjdump beside this Triton ({error}); reinstall triton") from error
    return subprocess.run([tool, option, path], check=True, capture_output=True, text=True).stdout


_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)([^;]*);")


def _instructions(sass: str) -> Iterator[tuple[int, str, str]]:
    """(address, opcode with modifiers, operands) of each instruction."""
    for line in sass.splitlines():
        if match := _LINE.match(line):
            # Before 9.0 an atomic without a result is RED, from there REDG; the table knows one name.
            yield int(match[1], 16), re.sub(r"^RED\b", "REDG", match[2]), match[3]


def _main_loop(code: list[tuple[int, str, str]], name: str) -> list[str]:
    """Opcodes of the shortest of the loops that hold most of instruction ``name``; empty without a loop."""
    best: tuple[int, int] | None = None
    body: list[str] = []
    for end, opcode, operands in code:
        target = re.search(r"0x([0-9a-f]+)", operands) if opcode.startswith("BRA") else None
        if target is None or int(target[1], 16) >= end:
            continue
        inside = [found for address, found, _ in code if int(target[1], 16) <= address <= end]
        rank = (count_of(inside, name), -len(inside))
        if best is None or rank > best:
            best, body = rank, inside
    return body


def table(rows: Iterable[CompileRow]) -> str:
    """The rows in Markdown, an empty cell for an instruction that does not occur; checks last."""
    head = ["case", "sm", "registers", "spills", "shared, bytes", *COLUMNS, "in the loop", "checks"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        loop = ", ".join(f"{count} {name}" for name, count in row.loop.items() if count)
        counts = [str(row.instructions[name] or "") for name in COLUMNS]
        resources = [str(row.registers), str(row.spill_bytes), str(row.shared_bytes)]
        lines.append([row.name, str(row.target), *resources, *counts, loop, "; ".join(row.failures) or "pass"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def report(rows: list[CompileRow]) -> str:
    """The page that the command prints: what was compiled with what, the table, the verdict."""
    import triton

    failed = sum(bool(row.failures) for row in rows)
    return (
        f"# GPU kernels as compiled\n\nTriton {triton.__version__}, no GPU: `python -m {__spec__.name}`. "
        "Spills are bytes of stack and local memory a thread; instruction columns count the whole kernel.\n\n"
        f"{table(rows)}\n{len(rows)} rows, {failed} failed.\n"
    )


def main() -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bnnedge.kernels.gpu.compile_gate", description="Compile gate.")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains TEXT")
    parser.add_argument("--quick", action="store_true", help="the cases of the default test suite")
    parser.add_argument("--json", action="store_true", help="print one JSON object a row instead of the page")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the page to FILE")
    options = parser.parse_args()
    rows = []
    work = [(case, target) for case in cases(options.only, options.quick) for target in case.targets]
    for number, (case, target) in enumerate(work, 1):
        print(f"[{number}/{len(work)}] {case.name} sm_{target}", file=sys.stderr)
        rows.append(check(case, target))
        if options.json:
            print(json.dumps(asdict(rows[-1])), flush=True)
    if not options.json:
        print(report(rows))
    if options.output:
        write_output(options.output, report(rows).encode())
    return int(any(row.failures for row in rows))


if __name__ == "__main__":
    sys.exit(main())
