"""GPU benchmarks without a GPU: commands in Triton's interpreter, and that nothing is timed on red."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bnnedge.benchmarks.gpu.clock import CpuClock
from bnnedge.benchmarks.gpu.measure import Amount, Case, Implementation, measure, require_equal
from bnnedge.benchmarks.gpu.row import GpuRow, environment_of
from bnnedge.benchmarks.rows import append_rows
from bnnedge.errors import BenchmarkError

pytest.importorskip("triton", reason="triton not found: it has wheels for Linux only")
CPU = torch.device("cpu")


def run_in_interpreter(*words: str) -> str:
    command = [sys.executable, "-m", "bnnedge.benchmarks.gpu", *words, "--device", "cpu", "--turns", "2"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("words", "case", "contenders", "amount", "unit"),
    [
        (
            ["gemm", "--size", "96"],
            "96 x 96 x 96",
            ["triton_popcount", "torch bf16", "torch._int_mm"],
            2 * 96**3,
            "ops",
        ),
        (["pack", "--size", "5x33", "--batch-size", "1"], "sign_pack 5x33", ["sign_pack", "torch copy"], 2150, "bytes"),
        (
            ["pack", "--size", "5x33", "--batch-size", "2"],
            "bn_gradient 5x33",
            ["bn_gradient", "torch copy"],
            50 * (6 * 2 * 33 + 8),
            "bytes",
        ),
    ],
)
def test_commands(words: list[str], case: str, contenders: list[str], amount: float, unit: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    shown = run_in_interpreter(*words, "--json", str(path))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert case in shown and "interpreter" in shown
    own = [row for row in rows if row["case"] == case]
    assert [row["contender"] for row in own] == contenders
    assert all((row["amount"], row["unit"], row["environment"]["gpu"]) == (amount, unit, None) for row in own)
    assert all(0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"] for row in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gemm", "--size", "33", "--device", "cpu"], "TRITON_INTERPRET=1"),
        (["gemm", "--device", "tpu"], "cuda, cuda:N or cpu"),
        (["pack", "--device", "meta"], "cuda, cuda:N or cpu"),
        (["conv", "--sizes", "3"], "No such option"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = import_module("bnnedge.benchmarks.gpu.__main__").main
    monkeypatch.setattr(sys, "argv", ["gpu", *words])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in said and said.count("\n") == 1


def do_nothing() -> None:
    pass


def run_measure(
    implementations: list[Implementation], clock: CpuClock | None = None, notes: Console | None = None
) -> list[GpuRow]:
    case = Case("gemm", "a case", Amount(10, "ops"), implementations)
    return measure(case, clock or CpuClock(), 3, {"gpu": None}, notes)


def test_nothing_is_timed_when_a_result_is_wrong() -> None:
    runs = []

    def check() -> None:
        require_equal("ours", torch.tensor([1, 2, 4]), torch.tensor([1, 2, 3]))

    with pytest.raises(BenchmarkError, match=r"ours: 1 of 3 numbers differ"):
        run_measure(
            [Implementation("peer", lambda: runs.append(1)), Implementation("ours", lambda: runs.append(2), check)]
        )
    assert runs == []


@pytest.mark.parametrize("other", [torch.zeros(3, dtype=torch.int64), torch.zeros(4, dtype=torch.int32)])
def test_another_shape_or_type_is_wrong(other: torch.Tensor) -> None:
    with pytest.raises(BenchmarkError, match="expected"):
        require_equal("ours", other, torch.zeros(3, dtype=torch.int32))


def test_a_peer_that_cannot_run_is_left_out() -> None:
    class Refusing(CpuClock):
        def record(self, work: Callable[[], object]) -> Callable[[], object]:
            work()
            return work

    def fail() -> None:
        raise RuntimeError("not on\nthis device")

    said = io.StringIO()
    both = [Implementation("ours", do_nothing, do_nothing, modelled_us=2.5), Implementation("peer", fail)]
    rows = run_measure(both, Refusing(), Console(file=said))
    assert [row.contender for row in rows] == ["ours"]
    assert said.getvalue() == "a case: without peer: not on this device\n"
    assert rows[0].modelled_us == 2.5
    assert rows[0].rate == pytest.approx(10 / (rows[0].p50_us * 1e-6))
    with pytest.raises(RuntimeError):  # ours is never left out
        run_measure([Implementation("ours", fail, do_nothing)], Refusing())


def test_rows_are_appended(tmp_path: Path) -> None:
    rows = run_measure([Implementation("ours", do_nothing, do_nothing)])
    path = tmp_path / "new" / "rows.jsonl"
    append_rows(path, rows)
    append_rows(path, rows)
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2
    with pytest.raises(BenchmarkError, match="cannot be written"):
        append_rows(tmp_path, rows)


def test_environment_of_a_cpu_names_no_gpu() -> None:
    assert environment_of(CPU)["gpu"] is None
