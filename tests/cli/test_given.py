"""Settings from flags, ``--set`` and files: how they are written, which wins, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bnnedge.cli import main
from bnnedge.cli.given import merge
from bnnedge.config import RunConfig
from bnnedge.train.checkpoint import read_checkpoint
from tests.cli.command_line import Capture, fails, train

SETTINGS: dict[str, Any] = {
    "method": "bop2",
    "epochs": 7,
    "lr": 0.02,
    "image_size": [8],
    "lr_steps": [2, 4],
    "teacher": None,
    "method_options": {"variant": "unbiased", "gamma": None, "sigma": 0.5},
}


def write(name: str, values: Any) -> Path:
    path = Path(name)
    path.write_text(json.dumps(values) if path.suffix == ".json" else yaml.safe_dump(values))
    return path


def given(*, file: Path | None = None, assignments: tuple[str, ...] = (), **flags: Any) -> RunConfig:
    return RunConfig.from_dict(merge(flags, assignments, file, check_options=True))


@pytest.mark.parametrize("name", ["c.yaml", "c.yml", "c.json", "c"])
def test_a_file_of_either_form_is_read(name: str) -> None:
    config = given(file=write(name, SETTINGS))
    assert (config.method, config.epochs, config.lr, config.image_size) == ("bop2", 7, 0.02, (8,))
    assert (config.lr_steps, config.teacher) == ((2, 4), None)
    assert config.method_options == SETTINGS["method_options"]


def test_options_of_the_method_may_stand_beside_the_settings() -> None:
    flat = {k: v for k, v in SETTINGS.items() if k != "method_options"} | SETTINGS["method_options"]
    assert given(file=write("flat.yaml", flat)) == given(file=write("nested.yaml", SETTINGS))


def test_flags_and_assignments_win_over_the_file() -> None:
    file = write("c.yaml", SETTINGS)
    config = given(file=file, epochs="9", sigma="0.25", assignments=("lr=0.5", "Variant = biased", "batch-size=64"))
    assert (config.epochs, config.lr, config.batch_size) == (9, 0.5, 64)
    assert config.method_options == {"variant": "biased", "gamma": None, "sigma": "0.25"}
    assert given(file=file, lr=None).lr == 0.02


def test_a_file_without_settings_is_a_run_of_defaults() -> None:
    assert given(file=write("c.json", {})) == RunConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3", "c.yaml: method rbnn has no option 'epoch'"),
        ("epoch: 3", "did you mean epochs?"),
        ("epochs: three", "c.yaml: epochs must be a whole number, got 'three'"),
        ("method: nope", "c.yaml: unknown method 'nope'"),
        ("method: bop\nmc_steps: 3", "c.yaml: method bop has no option 'mc_steps'; its options: surrogate"),
        ("method_options: {tmin: 1, mc_steps: 3}", "c.yaml: method rbnn has no option 'mc_steps'"),
        ("method_options: {tmin: small}", "c.yaml: tmin must be a finite number, got 'small'"),
        ("method_options: {epochs: 3}", "c.yaml: epochs is a setting of every run; it must stand outside"),
        ("method_options: {tmin: 1}\ntmin: 2", "c.yaml: tmin is given twice, under method_options and outside"),
        ("method_options: [tmin]", "c.yaml: method_options must be a mapping, got ['tmin']"),
        ("- epochs", "c.yaml should hold a setting a line, `name: value`, but holds a list"),
        ("", "c.yaml should hold a setting a line"),
        ("epochs: [", "c.yaml cannot be read as a run's settings"),
        ("epochs: !!python/object/apply:os.getcwd []", "c.yaml cannot be read as a run's settings"),
        ("\0", "c.yaml cannot be read as a run's settings"),
        ("epochs: 0", "epochs must be at least 1, got 0"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(text: str, words: str, capsys: Capture) -> None:
    Path("c.yaml").write_text(text)
    fails(["train", "--config", "c.yaml"], words, capsys)


@pytest.mark.parametrize("text", ["{", '{"epochs": 1', "[" * 100_000, "nonsense"])
def test_a_damaged_json_file_is_one_line(text: str, capsys: Capture) -> None:
    Path("c.json").write_text(text)
    fails(["train", "--config", "c.json"], "c.json cannot be read as a run's settings", capsys)


def test_a_missing_file_is_one_line(capsys: Capture) -> None:
    fails(["train", "--config", "none.yaml"], "none.yaml cannot be read: No such file", capsys)
    fails(["train", "--config", os.curdir], "cannot be read: Is a directory", capsys)


def test_a_file_of_another_method_is_refused(capsys: Capture) -> None:
    write("c.yaml", SETTINGS)
    fails(["train", "--config", "c.yaml", "--method", "rbnn"], "c.yaml: method rbnn has no option 'gamma'", capsys)
    fails(["train", "--config", "c.yaml", "--method", "nope"], "error: unknown method 'nope'", capsys)


def test_a_runs_own_settings_reproduce_it() -> None:
    """Whether its config.yaml is given back, or the same as JSON."""
    assert main(train("--epochs", "1", "--batch-size", "512", "--surrogate", "approx_sign", "--out", "first")) == 0
    values = yaml.safe_load(Path("first/config.yaml").read_text())
    write("first.json", values)
    weights = read_checkpoint(Path("first/last.ckpt")).model
    for number, file in enumerate(("first/config.yaml", "first.json")):
        out = Path(f"again{number}")
        assert main(["train", "--config", file, "--out", str(out)]) == 0
        assert Path(out, "config.yaml").read_text() == Path("first/config.yaml").read_text()
        again = read_checkpoint(out / "last.ckpt").model
        assert list(again) == list(weights)
        assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert main(["train", "--config", "first/config.yaml", "--out", "first", "--resume"]) == 0


def test_names_are_read_with_dashes_underscores_and_capitals() -> None:
    words = [("--lr-steps", "1"), ("--Tmin", "0.1"), ("--rotation_update", "2"), ("--LR_TYPE", "step")]
    arguments = [word for pair in words for word in pair]
    tiny = ["--model", "net.py:net", "--image-size", "8", "--device", "cpu", "--epochs", "2", "--batch-size", "512"]
    assert main(["train", *tiny, *arguments, "--no-a32", "--no_recompute", "--out", "run"]) == 0
    config = RunConfig.read(Path("run/config.yaml"))
    assert (config.lr_steps, config.lr_type, config.recompute) == ((1,), "step", False)
    expected = {"tmin": 0.1, "rotation_update": 2, "a32": False}
    assert {name: config.method_options[name] for name in expected} == expected
