"""Method benchmarks: the peer computes what our STE computes, runs are not trained twice, tables are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bnnedge.benchmarks.methods import accuracy, cost, cost_report
from bnnedge.benchmarks.methods.plain_ste import PlainSteTraining
from bnnedge.config import RunConfig
from bnnedge.errors import BenchmarkError, ConfigError
from bnnedge.methods.ste import Ste, SteOptions
from bnnedge.models.create import create_model
from bnnedge.train.run_folder import RunFolder

NET = """
from torch import nn
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear

def net(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 7, 3, 2), nn.BatchNorm2d(7), BinaryConv2d(7, 9, 3, 2, 1), nn.BatchNorm2d(9),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), BinaryLinear(9, 33), nn.BatchNorm1d(33), nn.Linear(33, num_classes))
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:net"


def test_the_peer_takes_the_same_steps_as_our_ste(net: str) -> None:
    ours = create_model(net, num_classes=10, in_channels=3).double()
    peer = PlainSteTraining(create_model(net, num_classes=10, in_channels=3).double(), torch.device("cpu"))
    peer.model.double().load_state_dict(ours.state_dict())
    method = Ste(SteOptions())
    method.attach(ours)
    optimizer = torch.optim.Adam(ours.parameters(), 1e-3)
    x, y = torch.randn(6, 3, 12, 12, dtype=torch.float64), torch.arange(6)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(ours.train()(x), y).backward()
        optimizer.step()
        method.after_step(ours)
        peer.step(x, y)
    for name, value in peer.model.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name


def test_cost_rows_and_table(net: str) -> None:
    setting = cost.Setting(net, image_size=12, batch_size=4, device="cpu", threads=1)
    assert cost.labels(["ste", "reactnet"]) == [
        *("pytorch ste", "ste", "reactnet/binary activations", "reactnet/binary weights")
    ]
    rows = cost.measure(["pytorch ste", "reactnet/binary weights"], setting, warmup=0, runs=2)
    assert [row.contender for row in rows] == ["pytorch ste", "reactnet/binary weights"]
    assert all(0 < row.p20_ms <= row.p50_ms <= row.p80_ms for row in rows)
    assert rows[0].time_ratio == 1
    assert rows[1].time_ratio is not None and rows[1].time_ratio > 0
    assert cost.measure(["ste"], setting, warmup=0, runs=1)[0].time_ratio is None
    lines = cost_report.table(rows).splitlines()
    assert lines[2].startswith("| pytorch ste | 1 |") and "| 1.00 |" in lines[2]
    with pytest.raises(BenchmarkError, match="needs a row of pytorch ste"):
        cost_report.table(rows[1:])


def cost_row(contender: str, ms: float, mib: int | None) -> cost.CostRow:
    environment = {"cpu": "Abacus 3000", "versions": {"torch": "2.9"}, "date_utc": "2027-01-02T03:04:05"}
    setting = {"model": "net", "image_size": 8, "batch_size": 4, "device": "cpu", "threads": 2}
    return cost.CostRow(
        contender=contender,
        passes=1,
        p20_ms=ms,
        p50_ms=ms,
        p80_ms=ms,
        time_ratio=ms / 100,
        epoch_ms=0.0,
        memory_bytes=mib and mib * 2**20,
        setting=setting,
        environment=environment,
    )


def test_the_cost_report_explains_what_is_above_the_limits_as_the_table_rounds() -> None:
    rows = [cost_row("pytorch ste", 100, 1000), cost_row("ste", 115.4, 1004), cost_row("bop", 90, None)]
    report = cost_report.report(rows, "the command")
    assert "net, 8x8, batch 4, cpu, 2 threads: Abacus 3000, torch 2.9, 2027-01-02." in report
    assert "Made by `the command`." in report
    assert report.endswith("None takes above 1.15 times the time or 1.0 times the memory of plain STE.\n")
    report = cost_report.report([*rows, cost_row("rbnn", 117, 990), cost_row("odd", 120, 1006)], "the command")
    assert (
        f"and why:\n\n- rbnn, time 1.17: {cost_report.REASONS['rbnn']}.\n- odd, time 1.2 and memory 1.01: not known.\n"
        in report
    )


def test_runs_are_kept_and_compared_with_the_float_twin(net: str, tmp_path: Path) -> None:
    configs = [
        RunConfig(method=method, model=net, image_size=(8,), epochs=1, seed=seed, device="cpu", threads=1)
        for method in ("float", "ste")
        for seed in (0, 1)
    ]
    for config in configs:
        assert accuracy.run_folder(config, tmp_path).parent == tmp_path
    trials = list(accuracy.train(configs, tmp_path / "runs"))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.ckpt")}
    assert list(accuracy.train(configs, tmp_path / "runs")) == trials
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.ckpt")} == before
    assert all(RunFolder(folder).result.exists() for folder in (tmp_path / "runs").iterdir())
    with pytest.raises(ConfigError, match="batch_size is 128 there, 64 was given"):
        list(accuracy.train([RunConfig(**{**vars(configs[0]), "batch_size": 64})], tmp_path / "runs"))

    top1 = {("float", 0): 0.9, ("float", 1): 0.8, ("ste", 0): 0.75, ("ste", 1): 0.85}
    made = [accuracy.Trial(t.config, top1[t.config.method, t.config.seed]) for t in trials]
    lines = accuracy.table(made).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| ste", "| float"]
    assert "80.00 ± 7.07 | -5.00 | adam 0.01, cos, decay 0" in lines[2]
    assert "85.00 ± 7.07 | +0.00" in lines[3]
    assert "8x8, net 1 epochs of batch size 128, seeds 0, 1, cpu" in accuracy.caption(made)
