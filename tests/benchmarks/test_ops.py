"""The operator benchmark: its tables, its engines on a small layer, its refusal to time wrong results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from bnnedge.benchmarks.environment import read_environment
from bnnedge.benchmarks.ops import __main__ as command
from bnnedge.benchmarks.ops import shapes as ops_shapes
from bnnedge.benchmarks.ops import tflite_engines
from bnnedge.benchmarks.ops.engine import CHAIN, Engine, signs
from bnnedge.benchmarks.ops.engines import Native, all_engines
from bnnedge.benchmarks.ops.measure import measure
from bnnedge.benchmarks.ops.row import OpRow
from bnnedge.benchmarks.ops.shapes import ConvShape, networks, read_shapes
from bnnedge.errors import BenchmarkError
from bnnedge.kernels import native

SMALL = ConvShape("6x5x32", 6, 5, 32, 32, 3, 1, 1, 1)
STRIDED = ConvShape("6x6x32 to 64 /2", 6, 6, 32, 64, 3, 2, 1, 1)

pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernels were not built")


@pytest.mark.parametrize("network", networks())
def test_tables(network: str) -> None:
    shapes = read_shapes(network)
    assert len({shape.name for shape in shapes}) == len(shapes)
    for shape in shapes:
        assert min(shape.out_height, shape.out_width, shape.channels, shape.count) >= 1
        assert shape.name.startswith(f"{shape.height}x{shape.width}x{shape.channels}")


def test_resnet18_work() -> None:
    """Binary multiply-adds of ResNet-18 at 224: 4 + 3 + 3 + 3 whole layers and three with half of that."""
    whole = 56 * 56 * 64 * 9 * 64
    assert sum(shape.multiply_adds * shape.count for shape in read_shapes("resnet18_imagenet")) == whole * 13 + (
        3 * whole // 2
    )


def test_unknown_network_and_damaged_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="unknown network 'alexnet'; known: quicknet, reactnet"):
        read_shapes("alexnet")
    (tmp_path / "bad.csv").write_text("name,height\na,b\n")
    monkeypatch.setattr(ops_shapes, "_FOLDER", tmp_path)
    with pytest.raises(BenchmarkError, match=r"bad.csv: expected a name and eight integers"):
        read_shapes("bad")


@pytest.mark.parametrize("shape", [SMALL, STRIDED], ids=["chain", "single"])
@pytest.mark.parametrize("engine", all_engines(), ids=lambda engine: engine.name)
def test_every_engine_gives_a_row(engine: Engine, shape: ConvShape) -> None:
    if reason := engine.unavailable():
        pytest.skip(reason)
    (row,) = measure("test", shape, [engine], 1, 3, 1e-4, {})
    assert 0 < row.best_us <= row.p20_us <= row.p50_us <= row.p80_us
    assert row.gmacs_per_s == pytest.approx(shape.multiply_adds / row.p50_us / 1e3)
    assert row.chain == (1 if isinstance(engine, Native) or not shape.chains else CHAIN)
    has_peak = isinstance(engine, Native) and native.peak(1, str(engine.native_kernel)) > 0
    assert (row.peak_share is not None) == has_peak
    assert json.loads(row.to_json())["engine"] == engine.name


def test_wrong_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Native(native.kernel_names()[0])
    engine.check(SMALL)
    run, out = engine.bind(SMALL, 1)

    def broken() -> None:
        run()
        out[0, 0, 0, 0] += 2

    monkeypatch.setattr(engine, "bind", lambda shape, threads: (broken, out))
    with pytest.raises(BenchmarkError, match="is wrong on 6x5x32"):
        measure("test", SMALL, [engine], 1, 1, 1e-4, {})


def test_int8_files_compute_the_convolution() -> None:
    """The int8 peer does the work it is timed for: its result is the quantized sum, not a float file in disguise."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter
    data, calls, size = tflite_engines.tflite_chain(STRIDED, binary=False)
    assert calls == 1
    session = interpreter(model_content=tflite_engines.quantized(data))
    session.allocate_tensors()
    values = np.random.default_rng(0).integers(-100, 101, (1, *size)).astype(np.int8)
    source, target = session.get_input_details()[0], session.get_output_details()[0]
    assert source["dtype"] == target["dtype"] == np.int8
    session.set_tensor(source["index"], values)
    session.invoke()
    _, weights = signs(STRIDED)
    image = values[0].astype(np.int32)
    view: Any = np.lib.stride_tricks.sliding_window_view  # its types differ between versions of NumPy
    windows = view(image, (3, 3), (0, 1))[::2, ::2]
    expected = np.clip(np.einsum("yxchw,ohwc->yxo", windows, weights) / STRIDED.channels, -128, 127)
    # Half a step of rounding to int8, plus the rounding of the fixed-point multiplier.
    assert np.abs(session.get_tensor(target["index"])[0] - expected).max() <= 0.51


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "read_shapes", lambda network: [SMALL, STRIDED])
    app = typer.Typer()
    app.command()(command.main)
    rows = tmp_path / "new" / "rows.jsonl"
    name = f"bnnedge {native.kernel_names()[0]}"
    arguments = [
        "--network",
        "quicknet",
        "--engine",
        name,
        "--engine",
        "torch fp32",
        "--turns",
        "2",
        "--turn-ms",
        "0.1",
    ]
    result = CliRunner().invoke(app, [*arguments, "--json", str(rows), "--threads", "2"])
    assert result.exit_code == 0, result.output
    assert "6x5x32" in result.output and "torch fp32" in result.output
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [record["engine"] for record in records] == [name, "torch fp32"] * 2
    assert all(record["threads"] == 2 and record["environment"]["cpu"] for record in records)

    result = CliRunner().invoke(app, ["--engine", "cuda"])
    assert result.exit_code == 2


def test_table_holds_every_row() -> None:
    environment = read_environment()
    rows = [
        OpRow(
            network="n",
            shape={"name": "s"},
            engine=f"e{i}",
            engine_version="1",
            threads=1,
            turns=1,
            calls_per_turn=1,
            chain=1,
            best_us=1.0,
            p20_us=2.0,
            p50_us=3.0 * (i + 1),
            p80_us=4.0,
            gmacs_per_s=5.0,
            peak_share=None,
            environment={"cpu": environment.cpu},
        )
        for i in range(3)
    ]
    table = command.table("n", [rows, rows], 1)
    assert table.row_count == 6
    assert list(table.columns[3].cells) == ["1.00", "2.00", "3.00"] * 2
