"""The table of accuracies: runs that are there are not trained again, and gaps are to the float twin's mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnnedge.benchmarks.methods import accuracy
from bnnedge.benchmarks.methods.accuracy import SHORT_RUNS, Trial, short_run
from bnnedge.config import RunConfig
from bnnedge.errors import ConfigError
from bnnedge.train.resolve import resolve


def config(method: str, seed: int = 0, epochs: int = 1) -> RunConfig:
    return RunConfig(
        method, "resnet20_1w1a", image_size=(8,), epochs=epochs, batch_size=700, seed=seed, device="cpu", threads=1
    )


def test_finished_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    first = list(accuracy.train([config("float")], tmp_path, said.append))
    monkeypatch.setattr(accuracy, "start_run", None)
    assert list(accuracy.train([config("float")], tmp_path, said.append)) == first
    assert [line[:4] for line in said] == ["1/1 ", "1/1 "] and all(line.endswith("0 min left") for line in said)
    with pytest.raises(ConfigError, match="epochs is 1 there, 2 was given"):
        list(accuracy.train([config("float", epochs=2)], tmp_path))


def test_table() -> None:
    values = {("float", 0): 0.96, ("float", 1): 0.94, ("ste", 0): 0.9, ("ste", 1): 0.92}
    trials = [Trial(resolve(config(method, seed)), top1) for (method, seed), top1 in values.items()]
    rows = accuracy.table(trials).splitlines()[2:]
    cells = [row.split(" | ")[:3] for row in rows]
    assert cells == [["| ste", "91.00 ± 1.41", "-4.00"], ["| float", "95.00 ± 1.41", "+0.00"]]


def test_settings_of_two_models_stand_apart_where_they_differ() -> None:
    configs = [
        resolve(short_run(config_of(method, model)))
        for method, models in {
            "bayesbinn": ("vgg_small_1w1a", "resnet18_1w1a"),
            "rbnn": ("vgg_small_1w1a", "resnet20_1w1a"),
            "ste": ("vgg_small_1w1a", "resnet18_1w1a"),
        }.items()
        for model in models
    ]
    settings = [row.split(" | ")[-1] for row in accuracy.table([Trial(c, 0.5) for c in configs]).splitlines()[2:]]
    assert settings == [
        "vgg_small_1w1a: adam 0.01, cos, decay 0, posterior_lr 0.01; resnet18_1w1a: adam 0.01, cos, decay 0 |",
        "vgg_small_1w1a: sgd 0.1, cos, decay 0.0001; resnet20_1w1a: sgd 0.1, cos, warm-up 5, decay 0.0001 |",
        "adam 0.01, cos, decay 0 |",
    ]


@pytest.mark.parametrize("model", SHORT_RUNS)
def test_settings_of_short_runs_are_taken(model: str) -> None:
    for method, chosen in SHORT_RUNS[model].items():
        config = resolve(short_run(config_of(method, model)))
        assert chosen.items() <= {**vars(config), **config.method_options}.items(), method
    other = config_of("bnew", "resnet18_1w1a")
    assert short_run(other) == other


def config_of(method: str, model: str) -> RunConfig:
    return RunConfig(method, model, device="cpu", threads=1)
