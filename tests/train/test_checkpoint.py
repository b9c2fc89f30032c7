"""The checkpoint file: round trip, atomic replacement, and every kind of damage as one line."""

from __future__ import annotations

import errno
import io
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bnnedge.config import RunConfig
from bnnedge.data.info import DatasetInfo
from bnnedge.data.preprocessing import Preprocessing
from bnnedge.errors import CheckpointError
from bnnedge.files import write_atomically
from bnnedge.train.checkpoint import Checkpoint, read_checkpoint
from bnnedge.train.rng import rng_state, set_rng_state

RECORD = Preprocessing(1, 8, 8, 255.0, (0.5,), (0.25,))


def example() -> Checkpoint:
    parameter = torch.nn.Parameter(torch.arange(6.0))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    return Checkpoint(
        config=RunConfig(lr_steps=(1, 2), lr_type="step", method_options={"a": 1.5, "b": True}),
        dataset=DatasetInfo("digits", "classification", 2, ("x", "y"), RECORD),
        epoch=3,
        best_epoch=2,
        best_score=0.1 + 0.2,
        model={"weight": parameter.detach(), "steps": torch.tensor(7)},
        optimizers={"run": optimizer.state_dict()},
        rng=rng_state(),
    )


def test_round_trip(tmp_path: Path) -> None:
    original = example()
    write_atomically(tmp_path / "a.ckpt", original.to_bytes())
    read = read_checkpoint(tmp_path / "a.ckpt")
    for name in ("config", "dataset", "epoch", "best_epoch", "best_score"):
        assert getattr(read, name) == getattr(original, name)
    assert all(torch.equal(read.model[k], v) for k, v in original.model.items())
    assert torch.equal(read.optimizers["run"]["state"][0]["exp_avg"], original.optimizers["run"]["state"][0]["exp_avg"])


def test_rng_state_restores_every_generator(tmp_path: Path) -> None:
    def draw() -> tuple[list[float], list[float], float, float]:
        return torch.rand(5).tolist(), np.random.rand(5).tolist(), random.random(), random.gauss(0, 1)

    random.gauss(0, 1)  # leaves a cached second value in the state
    np.random.randn(1)
    path = tmp_path / "a.ckpt"
    write_atomically(path, example().to_bytes())
    first, second = draw(), draw()
    set_rng_state(read_checkpoint(path).rng)
    assert (draw(), draw()) == (first, second)


def saved(contents: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    return buffer.getvalue()


class Attack:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("this code must not run",)


DAMAGED = {
    "empty": (lambda good: b"", "damaged or no checkpoint"),
    "garbage": (lambda good: b"garbage" * 100, "damaged or no checkpoint"),
    "half": (lambda good: good[: len(good) // 2], "damaged or no checkpoint"),
    "last byte lost": (lambda good: good[:-1], "damaged or no checkpoint"),
    "code": (lambda good: saved(Attack()), "damaged or no checkpoint"),
    "another file": (lambda good: saved({"weight": torch.ones(1)}), "not a checkpoint of bnnedge"),
    "a tensor": (lambda good: saved(torch.ones(1)), "not a checkpoint of bnnedge"),
    "version": (
        lambda good: saved({"format": "bnnedge-checkpoint", "version": 99}),
        "version 99.*reads versions 2 to 3",
    ),
    "incomplete": (lambda good: saved({"format": "bnnedge-checkpoint", "version": 2}), "lacks config, dataset"),
    "config": (
        lambda good: saved({**torch.load(io.BytesIO(good), weights_only=True), "config": {"speed": 1}}),
        "no option 'speed'",
    ),
    "dataset": (
        lambda good: saved({**torch.load(io.BytesIO(good), weights_only=True), "dataset": {}}),
        "lacks name",
    ),
}


def test_version_2_is_read(tmp_path: Path) -> None:
    """Classification was the only task then, and the data set was described by other names."""
    contents = torch.load(io.BytesIO(example().to_bytes()), weights_only=True)
    contents |= {"version": 2, "best_val_top1": contents.pop("best_score")}
    contents["config"]["image_size"] = 8
    for name in ("task", "preprocess", "augment", "validation_split", "validate_on"):
        del contents["config"][name]
    contents["dataset"] = {
        "name": "digits",
        "num_classes": 2,
        "class_names": ["x", "y"],
        "in_channels": 1,
        "image_size": 8,
        "mean": [0.5],
        "std": [0.25],
    }
    del contents["ema"]
    write_atomically(tmp_path / "old.ckpt", saved(contents))
    found = read_checkpoint(tmp_path / "old.ckpt")
    record = Preprocessing(1, 8, 8, 16.0, (0.5,), (0.25,))
    assert found.dataset == DatasetInfo("digits", "classification", 2, ("x", "y"), record)
    assert (found.best_score, found.best_epoch, found.config.image_size) == (0.1 + 0.2, 2, (8,))


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_one_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, words = DAMAGED[kind]
    path = tmp_path / "a.ckpt"
    path.write_bytes(damage(example().to_bytes()))
    with pytest.raises(CheckpointError, match=words) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ckpt"
    write_atomically(path, b"old")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(path, b"new")
    assert caught.value.filename == str(path)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert path.read_bytes() == b"old"
