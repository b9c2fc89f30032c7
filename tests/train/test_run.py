"""Whole runs: what they leave behind, what they refuse, and loading them again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bnnedge.config import RunConfig
from bnnedge.data.dataset import load_dataset
from bnnedge.errors import BnnedgeError, CheckpointError, ConfigError, MissingDependencyError, UnknownNameError
from bnnedge.methods import METHODS
from bnnedge.train.checkpoint import read_checkpoint
from bnnedge.train.load import load_run
from bnnedge.train.loop import DivergenceError
from bnnedge.train.metrics import evaluate
from bnnedge.train.rng import epoch_generator
from bnnedge.train.start import start_run

Config = Callable[..., RunConfig]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_run_folder_holds_what_it_promises(tiny_config: Config, tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    result = start_run(tiny_config(), run)
    names = {p.name for p in run.iterdir() if not p.name.startswith("events.out")}
    assert names == {"config.yaml", "metrics.jsonl", "last.ckpt", "best.ckpt", "result.json", "log.txt"}
    assert json.loads((run / "result.json").read_text()) == result
    resolved = RunConfig.read(run / "config.yaml")
    assert (resolved.optimizer, resolved.lr, resolved.image_size, resolved.device) == ("adam", 1e-2, (8,), "cpu")
    assert read_checkpoint(run / "last.ckpt").config == resolved
    rows = metrics(run)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(0 <= row["layers"]["conv"]["flip_rate"] <= 1 for row in rows)
    assert any(row["flip_rate"] > 0 for row in rows)
    weight = read_checkpoint(run / "last.ckpt").model["conv.weight"]
    last = rows[-1]["layers"]["conv"]
    assert last["latent_magnitude"] == float(weight.abs().mean())
    assert last["distance_to_binary"] == float((weight.abs() - 1).abs().mean())
    # The network has one binary layer, so the mean over the layers is that layer's number.
    assert {kind: rows[-1][kind] for kind in last} == last
    events = EventAccumulator(str(run))
    events.Reload()
    logged = [event.value for event in events.Scalars("val_top1")]
    assert logged == [float(np.float32(row["val_top1"])) for row in rows]
    assert "test: top-1" in (run / "log.txt").read_text()


def test_best_is_chosen_by_validation_and_tested_once(tiny_config: Config, tmp_path: Path) -> None:
    result = start_run(tiny_config(epochs=6, lr=0.05), tmp_path / "run")
    rows = metrics(tmp_path / "run")
    top1 = [row["val_top1"] for row in rows]
    assert result["best_epoch"] == 1 + top1.index(max(top1))
    loaded = load_run(tmp_path / "run")
    assert loaded.epoch == result["best_epoch"]
    dataset = load_dataset("digits", 8)
    for split, expected in (("val", max(top1)), ("test", result["test_top1"])):
        assert evaluate(loaded.model, dataset, split, torch.device("cpu")).scores["top1"] == expected  # type: ignore[arg-type]
    assert not any("test" in key for row in rows for key in row)
    assert load_run(tmp_path / "run", "last").epoch == 6
    assert load_run(tmp_path / "run" / "last.ckpt").epoch == 6


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(method: str, tiny_config: Config, tmp_path: Path) -> None:
    start_run(tiny_config(method=method, epochs=6, batch_size=32), tmp_path / "run")
    rows = metrics(tmp_path / "run")
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["val_top1"] > 0.3  # chance is 0.1


def test_the_same_seed_gives_the_same_weights(tiny_config: Config, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(3)
        start_run(tiny_config(epochs=1, seed=seed), tmp_path / name)
    a, b, c = (load_run(tmp_path / name).model.state_dict() for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["conv.weight"], c["conv.weight"])


def test_epochs_and_seeds_draw_differently() -> None:
    draws = {tuple(torch.rand(2, generator=epoch_generator(s, e)).tolist()) for s in range(5) for e in range(5)}
    assert len(draws) == 25


def test_loading_does_not_touch_the_global_generator(tiny_config: Config, tmp_path: Path) -> None:
    start_run(tiny_config(epochs=1), tmp_path / "run")
    state = torch.get_rng_state()
    load_run(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state)


REFUSED: list[tuple[dict[str, Any], type[BnnedgeError], str]] = [
    ({"method": "nope"}, UnknownNameError, "unknown method 'nope'; known: ste"),
    ({"model": "nope"}, UnknownNameError, "unknown model 'nope'"),
    ({"model": "nope.py:Net"}, ConfigError, "nope.py does not exist"),
    ({"dataset": "nope"}, UnknownNameError, "unknown dataset 'nope'"),
    ({"method_options": {"nope": 1}}, ConfigError, "no option 'nope'; it has: surrogate"),
    ({"method_options": {"weight_clip": "x"}}, ConfigError, "weight_clip must be a finite number"),
    ({"model": "vgg_small_1w1a", "image_size": 4}, ConfigError, "below 8"),
]


@pytest.mark.parametrize(("values", "kind", "words"), REFUSED)
def test_a_refused_run_writes_nothing(
    values: dict[str, Any], kind: type[BnnedgeError], words: str, tiny_config: Config, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=words) as caught:
        start_run(tiny_config(**values), tmp_path / "runs" / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_one_line(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="sees no GPU here"):
        start_run(tiny_config(device="cuda"), tmp_path / "run")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("nn.Linear(3, num_classes)", "cannot take images of shape \\(2, 1, 8, 8\\)"),
        (
            "nn.Sequential(nn.Flatten(), BinaryLinear(64, 7))",
            "output of shape \\(2, 10\\) for task classification, but gave \\(2, 7\\)",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_one_line(body: str, words: str, tiny_config: Config, tmp_path: Path) -> None:
    source = "from torch import nn\nfrom bnnedge.layers.binary_layers import BinaryLinear\n"
    body = body if "Binary" in body else f"nn.Sequential({body}, BinaryLinear(10, 10))"
    (tmp_path / "net.py").write_text(f"{source}\ndef net(num_classes):\n    return {body}\n")
    with pytest.raises(ConfigError, match=words) as caught:
        start_run(tiny_config(model=f"{tmp_path / 'net.py'}:net"), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_overwritten(tiny_config: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start_run(tiny_config(epochs=1), run)
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    with pytest.raises(ConfigError, match=r"exists already.*--resume"):
        start_run(tiny_config(epochs=2), run)
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_an_empty_folder_may_become_a_run_and_a_file_may_not(tiny_config: Config, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    start_run(tiny_config(epochs=1), tmp_path / "empty")
    assert (tmp_path / "empty" / "best.ckpt").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        start_run(tiny_config(epochs=1), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_divergence_names_epoch_and_step_and_keeps_the_last_checkpoint(tiny_config: Config, tmp_path: Path) -> None:
    source = (tmp_path / "tiny.py").read_text() if (tmp_path / "tiny.py").exists() else ""
    # The network turns infinite in the third step of the second epoch (10 steps each).
    source = source.replace(
        "    def forward(self, x):\n",
        "    steps = 0\n\n    def forward(self, x):\n        self.steps += self.training\n",
    )
    source = source.replace("flatten(1)))", "flatten(1))) / (self.steps != 13)")
    (tmp_path / "diverging.py").write_text(source)
    with pytest.raises(DivergenceError, match="in epoch 2 at step 3 with learning rate"):
        start_run(tiny_config(model=f"{tmp_path / 'diverging.py'}:Tiny"), tmp_path / "run")
    assert read_checkpoint(tmp_path / "run" / "last.ckpt").epoch == 1


def test_load_run_refuses_what_is_no_run(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no run in"):
        load_run(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.yaml"):
        load_run(tmp_path / "folder")
    tiny_config().write(tmp_path / "folder" / "config.yaml")
    with pytest.raises(CheckpointError, match=r"has no best\.ckpt yet"):
        load_run(tmp_path / "folder")


def test_load_run_refuses_weights_of_another_model(tiny_config: Config, tmp_path: Path) -> None:
    start_run(tiny_config(epochs=1), tmp_path / "run")
    path = tmp_path / "tiny.py"
    path.write_text(path.read_text().replace("33", "32"))
    with pytest.raises(CheckpointError, match="does not fit model") as caught:
        load_run(tmp_path / "run", trust_code=True)
    assert "\n" not in str(caught.value)
