"""The table of accuracies: runs that are there are not trained again, and gaps are to the float twin's mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnnedge.benchmarks.methods import accuracy
from bnnedge.benchmarks.methods.accuracy import OPTIONS, Trial
from bnnedge.config import RunConfig
from bnnedge.errors import ConfigError
from bnnedge.methods import METHODS
from bnnedge.train.run import resolve


def config(method: str, seed: int = 0, epochs: int = 1) -> RunConfig:
    return RunConfig(
        method, "resnet20_1w1a", image_size=8, epochs=epochs, batch_size=700, seed=seed, device="cpu", threads=1
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


@pytest.mark.parametrize("method", OPTIONS)
def test_options_are_the_method_s(method: str) -> None:
    METHODS.load(method).Options(**OPTIONS[method])
