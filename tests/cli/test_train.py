"""``bnnedge train``, and what is done with a run afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bnnedge.cli import main
from bnnedge.config import RunConfig
from bnnedge.train.checkpoint import read_checkpoint
from tests.cli.command_line import Capture, fails, files, train


def test_train_evaluate_and_resume(tmp_path: Path, capsys: Capture) -> None:
    assert main(train("--epochs", "2", "--batch-size", "64", "--lr", "0.01", "--set", "surrogate=approx_sign")) == 0
    run = Path("runs/ste_net_digits")
    output = capsys.readouterr()
    assert "epoch 1/2" in output.out
    assert "epoch 2/2" in output.out
    assert str(run) in output.out
    assert output.err == ""
    config = RunConfig.read(run / "config.yaml")
    assert (config.epochs, config.batch_size, config.lr, config.threads) == (2, 64, 0.01, 1)
    assert config.method_options["surrogate"] == "approx_sign"
    result = json.loads((run / "result.json").read_text())

    assert main(["evaluate", str(run), "--json", "out.json"]) == 0
    output = capsys.readouterr()
    assert f"top-1 {result['test_top1']:.2%}" in output.out
    assert "on digits test (359 samples), pytorch cpu" in output.out
    evaluated = json.loads(Path("out.json").read_text())
    assert (evaluated["top1"], evaluated["samples"]) == (result["test_top1"], result["test_samples"])
    assert main(["evaluate", str(run / "best.ckpt"), "--split", "val", "--json", "out.json"]) == 0
    assert json.loads(Path("out.json").read_text())["top1"] == result["val_top1"]

    before = files(run)
    fails(["evaluate", str(run), "--device", "tpu"], "device must be one of auto, cpu, cuda, got 'tpu'", capsys)
    fails(train("--epochs", "2"), "exists already", capsys)
    fails(train("--epochs", "3", "--resume"), "epochs is 2 there, 3 was given", capsys)
    assert main([*train("--epochs", "2"), "--resume"]) == 0
    assert main(["train", "--resume", "--out", str(run), "--set", "surrogate=approx_sign"]) == 0
    assert files(run) == before


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: b"garbage", lambda d: b""])
def test_a_damaged_checkpoint_is_one_line(damage: Any, tmp_path: Path, capsys: Capture) -> None:
    assert main(train("--epochs", "1", "--out", "run")) == 0
    for name in ("best.ckpt", "last.ckpt"):
        path = Path("run") / name
        path.write_bytes(damage(path.read_bytes()))
    before = files(tmp_path)
    fails(["evaluate", "run"], "best.ckpt is damaged", capsys)
    fails(["train", "--resume", "--out", "run"], "last.ckpt is damaged", capsys)
    assert files(tmp_path) == before


def test_a_later_phase_starts_from_init_and_is_resumed_without(tmp_path: Path) -> None:
    common = ["train", "--method", "bnew", "--model", "net.py:net", "--image-size", "8", "--device", "cpu"]
    assert main([*common, "--phases", "1", "--epochs", "1", "--out", "first"]) == 0
    later = [*common, "--phases", "2,3", "--epochs", "2", "--out", "later"]
    assert main([*later, "--init", "first"]) == 0
    rows = Path("later/metrics.jsonl").read_text()
    assert [json.loads(line)["phase"] for line in rows.splitlines()] == ["regularized weights", "frozen weights"]
    before = read_checkpoint(Path("later/last.ckpt")).model
    for name in ("last.ckpt", "best.ckpt", "metrics.jsonl", "result.json"):  # killed in the first epoch
        Path("later", name).unlink()
    assert main([*later, "--resume"]) == 0
    after = read_checkpoint(Path("later/last.ckpt")).model
    assert all(bool((before[name] == after[name]).all()) for name in before)


def test_rbnn_shortcuts_reach_the_method(capsys: Capture) -> None:
    flags = ["--rotation-update", "2", "--a32", "--Tmin", "0.1", "--tmax", "5", "--warm-up", "1"]
    arguments = ["train", "--model", "net.py:net", "--image-size", "8", "--epochs", "2", "--device", "cpu", *flags]
    assert main([*arguments, "--out", "run"]) == 0
    config = RunConfig.read(Path("run/config.yaml"))
    assert config.warm_up == 1
    expected = {"rotation_update": 2, "a32": True, "tmin": 0.1, "tmax": 5.0}
    assert {k: config.method_options[k] for k in expected} == expected


LAYER_METRICS = {"flip_rate", "positive_fraction", "latent_magnitude", "distance_to_binary"}


@pytest.mark.parametrize(
    ("flags", "options", "phases", "own"),
    [
        (["--method", "bnew", "--phases", "1,2,3"], {"phases": [1, 2, 3]}, 3, set()),
        (["--method", "bop2", "--variant", "biased"], {"variant": "biased"}, 1, {"flips"}),
        (["--method", "bop2", "--variant", "unbiased"], {"variant": "unbiased"}, 1, {"flips"}),
        (["--method", "rbnn"], {"rotation_update": 1}, 1, {"rotation_angle_deg"}),
        (
            ["--method", "bayesbinn", "--mc-steps", "5", "--evaluate-steps", "10"],
            {"mc_steps": 5, "evaluate_steps": 10},
            1,
            set(),
        ),
    ],
    ids=["bnew", "bop2-biased", "bop2-unbiased", "rbnn", "bayesbinn"],
)
def test_methods_run_with_their_own_options_and_log_their_metrics(
    flags: list[str], options: dict[str, Any], phases: int, own: set[str]
) -> None:
    epochs = max(phases, 2)
    arguments = ["--batch-size", "512", "--epochs", str(epochs), "--out", "run", *flags]
    assert main(["train", "--model", "net.py:net", "--image-size", "8", "--device", "cpu", *arguments]) == 0
    config = RunConfig.read(Path("run/config.yaml"))
    assert {name: config.method_options[name] for name in options} == options
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == epochs
    assert len({row.get("phase") for row in rows}) == phases
    board = EventAccumulator("run").Reload()
    for row in rows:
        (layer,) = row["layers"].values()
        assert set(layer) == LAYER_METRICS | own
        assert all(np.isfinite(value) for value in layer.values())
    for kind in LAYER_METRICS | own:
        logged = [event.value for event in board.Scalars(f"{kind}/2")]
        assert logged == [float(np.float32(row["layers"]["2"][kind])) for row in rows]


def test_a_teacher_is_a_run_or_a_checkpoint(tmp_path: Path) -> None:
    """Both ways give the same student, which has learnt something from its teacher."""
    assert main(train("--epochs", "1", "--batch-size", "512", "--out", "teacher")) == 0
    results: list[str] = []
    for name in ("teacher", "teacher/best.ckpt", None):
        given = ["--teacher", name, "--distill-weight", "0.9", "--distill-temperature", "2"] if name else []
        out = f"run{len(results)}"
        assert main(train("--epochs", "1", "--batch-size", "512", "--out", out, *given)) == 0
        results.append((tmp_path / out / "metrics.jsonl").read_text())
    losses = [json.loads(result)["train_loss"] for result in results]
    assert losses[0] == losses[1] != losses[2]


def test_a_file_that_nothing_here_can_verify_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert main(train("--epochs", "1", "--out", "run")) == 0
    monkeypatch.setattr("bnnedge.export.runtimes.lce.find_spec", lambda _: None)
    assert main(["export", "run", "--target", "lce"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "not verified: lce: larq-compute-engine is not installed: pip install 'bnnedge[lce]'" in output


def test_a_summary_fits_80_columns_and_names_every_layer(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["summary", "resnet18_1w1a", "--image-size", "224", "--num-classes", "1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    first = next(i for i, line in enumerate(lines) if "blocks.0.conv1" in line)
    assert lines[first].split() == ["blocks.0.conv1", "64x56x56", "36,864", "128", "5.0", "115,605,504"]
    assert lines[first + 1].split() == ["binary", "conv", "3x3", "64x56x56"]


def test_an_unwritable_output_is_one_line(capsys: Capture) -> None:
    assert main(train("--epochs", "1", "--out", "run")) == 0
    fails(["evaluate", "run", "--json", "no/such/folder.json"], "No such file", capsys, code=1)
    fails(train("--epochs", "1", "--out", "net.py/run"), "net.py", capsys)
