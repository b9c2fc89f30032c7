from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from bnnedge.errors import ConfigError
from bnnedge.kernels.gpu import bmma_gemm, compile_gate
from bnnedge.kernels.gpu.compile_gate import CompileCase, CompileRow, check, count_of, table

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton's ptxas is for Linux")

ALL = [(case, target) for case in compile_gate.cases() for target in case.targets]
QUICK = [(case, target) for case, target in ALL if case.quick and target == case.targets[-1]]
COMMITTED = Path(__file__).parents[3] / "benchmarks" / "results" / "gpu_compile.md"


OLD_TRITON = tuple(map(int, version("triton").split(".")[:2])) < (3, 9)
"""Triton 3.7, the newest that some registries have for Python 3.13, compiles 8-bit products for compute capability 10.0
without the tensor core's own instructions; 3.9 uses them."""


def named(pairs: list[tuple[CompileCase, int]]) -> list[Any]:
    return [
        pytest.param(
            case,
            target,
            id=f"{case.name}-sm{target}",
            marks=[pytest.mark.skipif(OLD_TRITON and target >= 100, reason="Triton is older than 3.9")],
        )
        for case, target in pairs
    ]


@pytest.mark.parametrize(("case", "target"), named(QUICK))
def test_quick_case(case: CompileCase, target: int) -> None:
    assert check(case, target).failures == ()


@pytest.mark.slow
@pytest.mark.parametrize(("case", "target"), named([pair for pair in ALL if pair not in QUICK]))
def test_case(case: CompileCase, target: int) -> None:
    assert check(case, target).failures == ()


def small_case() -> CompileCase:
    return next(case for case in bmma_gemm.COMPILE_CASES if case.quick and case.name.startswith("bmma_gemm/64x64"))


def test_every_expectation_can_fail() -> None:
    case = small_case()
    broken = replace(
        case,
        at_least={"STG.128": 10**6, "BMMA": 0},
        in_loop={"BMMA.168256.AND.POPC": 1, "BAR": 99},
        blocks_per_sm=8,
    )
    row = check(broken, 90)
    text = "\n".join(row.failures)
    assert f"{row.registers} registers x {8 * 128} threads exceed 65536" in text
    assert f"{row.shared_bytes} bytes shared x 8 exceed {227 * 1024}" in text
    assert "STG.128, expected at least 1000000" in text
    assert "BMMA, expected 0" in text
    assert "32 BMMA.168256.AND.POPC in the loop, expected 1" in text
    assert "BAR in the loop, expected 99" in text


def test_a_spill_is_seen() -> None:
    """The tile that the design avoids: 128 x 64 outputs a warp do not fit into 255 registers."""
    case = small_case()
    config = case.constants["CONFIG"]
    tile = replace(config.tile, m_tiles=8, n_pairs=4)
    wide = replace(case, constants={**case.constants, "CONFIG": replace(config, tile=tile)}, in_loop={})
    row = check(wide, 90)
    assert row.spill_bytes > 0
    assert any(failure.startswith("spills: ") for failure in row.failures)


def test_arguments_that_are_missing_or_given_twice_are_named() -> None:
    case = small_case()
    arguments = {name: kind for name, kind in case.arguments.items() if name != "rows"}
    with pytest.raises(ConfigError, match="rows"):
        check(replace(case, arguments=arguments), 90)
    with pytest.raises(ConfigError, match="given twice"):
        check(replace(case, constants={**case.constants, "rows": 1}), 90)


def test_modifiers_count_in_any_order() -> None:
    opcodes = ["LDG.E.128", "LDG.E.EF.128.CONSTANT", "LDG.E", "LDGSTS.E.BYPASS.128", "LDG.E.64"]
    assert [count_of(opcodes, name) for name in ("LDG", "LDG.128", "LDGSTS.128", "LDG.128.CONSTANT")] == [4, 2, 1, 1]


def test_the_main_loop_is_the_shortest_with_most_of_the_instruction() -> None:
    code = [
        (0, "NOP", ""),
        (16, "BMMA", ""),
        (32, "BMMA", ""),
        (48, "BRA", " 0x10"),
        (64, "BRA", " 0x0"),
        (80, "BRA", " 0x50"),
    ]
    assert compile_gate._main_loop(code, "BMMA") == ["BMMA", "BMMA", "BRA"]
    assert compile_gate._main_loop(code[:3], "BMMA") == []


def test_table() -> None:
    counts = dict.fromkeys(compile_gate.COLUMNS, 0) | {"BMMA": 128}
    row = CompileRow("op/config", 90, 252, 0, 196608, counts, {"BMMA": 128, "LDSM": 0}, ("a", "b"))
    cells = [cell.strip() for cell in table([row]).splitlines()[2].strip("|").split("|")]
    assert cells[:6] == ["op/config", "90", "252", "0", "196608", "128"]
    assert cells[-2:] == ["128 BMMA", "a; b"]


def test_the_committed_table_holds_every_case_and_all_pass() -> None:
    cells = [line.split(" | ") for line in COMMITTED.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = {(row[0].removeprefix("| "), row[1]): row[-1].removesuffix(" |") for row in cells[2:]}
    known = {(case.name, str(target)) for case, target in ALL}
    assert rows.keys() == known, "run the command of the gate again, with --output for this file"
    assert set(rows.values()) == {"pass"}


def test_the_command_prints_a_row_a_line() -> None:
    command = [sys.executable, "-m", "bnnedge.kernels.gpu.compile_gate", "--only", small_case().name, "--json"]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [row["target"] for row in rows] == list(small_case().targets)
    assert all(row["failures"] == [] and row["instructions"]["BMMA"] for row in rows)
