"""What a run may choose of its data: splits, which one picks the best epoch, records, augmentation, shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bnnedge.config import RunConfig
from bnnedge.errors import BnnedgeError, ConfigError, DataError
from bnnedge.train.checkpoint import read_checkpoint
from bnnedge.train.evaluate import evaluate_run
from bnnedge.train.load import load_run
from bnnedge.train.result import result_text
from bnnedge.train.start import resume_run, start_run

Config = Callable[..., RunConfig]


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_on_everything_keeps_the_last_epoch(tiny_config: Config, tmp_path: Path) -> None:
    result = start_run(tiny_config(validation_split="none", epochs=3), tmp_path / "run")
    assert (result["best_epoch"], result["validated_on"]) == (3, None)
    assert not any(name.startswith(("val_", "note")) for name in result)
    assert not any(name.startswith(("val_", "test_")) for row in rows(tmp_path / "run") for name in row)
    best, last = (read_checkpoint(tmp_path / "run" / name) for name in ("best.ckpt", "last.ckpt"))
    assert (best.epoch, best.best_score) == (3, None)
    assert all(torch.equal(v, last.model[k]) for k, v in best.model.items())
    assert evaluate_run(tmp_path / "run").scores["top1"] == result["test_top1"]
    with pytest.raises(DataError, match="no val split"):
        evaluate_run(tmp_path / "run", "val")
    assert "validation" not in result_text(result)
    assert resume_run(tmp_path / "run") == result


def test_the_test_split_chooses_only_if_asked_and_says_so(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config(validation_split="none", validate_on="test", epochs=4, lr=0.05)
    result = start_run(config, tmp_path / "run")
    scores = [row["test_top1"] for row in rows(tmp_path / "run")]
    assert result["test_top1"] == max(scores) and result["best_epoch"] == 1 + scores.index(max(scores))
    assert result["validated_on"] == "test"
    assert "the test split chose the epoch" in result["note"] and result["note"] in result_text(result)


def test_the_note_of_a_result_is_printable() -> None:
    result = {"test_top1": 0.5, "test_samples": 2, "note": "\x1b[2J"}
    assert result_text(result) == r"test top-1 50.00% (2 samples); \x1b[2J"


def test_a_share_is_held_out(tiny_config: Config, tmp_path: Path) -> None:
    start_run(tiny_config(validation_split=0.5, epochs=1), tmp_path / "run")
    assert [evaluate_run(tmp_path / "run", split).samples for split in ("train", "val", "test")] == [719, 719, 359]


def test_a_preprocessing_travels_with_the_run(tiny_config: Config, tmp_path: Path) -> None:
    result = start_run(tiny_config(preprocess="symmetric", augment="none", epochs=1), tmp_path / "run")
    record = load_run(tmp_path / "run").dataset.preprocessing
    assert (record.mean, record.std, record.scale) == ((0.5,), (0.5,), 16.0)
    assert evaluate_run(tmp_path / "run").scores["top1"] == result["test_top1"]


def test_a_changed_record_is_applied(tiny_config: Config, tmp_path: Path) -> None:
    """``evaluate`` takes the mean from the checkpoint, not from the data set."""
    start_run(tiny_config(epochs=3, lr=0.05), tmp_path / "run")
    path = tmp_path / "run" / "best.ckpt"
    own = evaluate_run(tmp_path / "run")
    contents = torch.load(path, weights_only=True)
    contents["dataset"]["preprocessing"]["mean"] = [0.9]
    torch.save(contents, path)
    assert evaluate_run(tmp_path / "run").scores["top1"] < own.scores["top1"]


def test_images_that_are_not_square_train_and_resume(tiny_config: Config, tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\nfrom bnnedge.layers.binary_layers import BinaryConv2d\n\n"
        "def net(num_classes, height, width, image_size):\n"
        "    assert image_size == (height, width) == (6, 10)\n"
        "    pool = [nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()]\n"
        "    return nn.Sequential(BinaryConv2d(1, 8, 3), *pool, nn.Linear(8, num_classes))\n"
    )
    config = tiny_config(model=f"{file}:net", image_size=(6, 10), epochs=1)
    result = start_run(config, tmp_path / "run")
    assert load_run(tmp_path / "run").dataset.preprocessing.size == (6, 10)
    assert resume_run(tmp_path / "run") == result


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"task": "regression"}, "unknown task 'regression'; known: classification"),
        ({"preprocess": "nothing"}, "unknown preprocessing 'nothing'"),
        ({"augment": "nothing"}, "unknown augmentation 'nothing'"),
        ({"preprocess": "imagenet"}, "is for images of 3 channels"),
    ],
)
def test_choices_that_do_not_exist(values: dict[str, Any], words: str, tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(BnnedgeError, match=words):
        start_run(tiny_config(**values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_with_another_preprocessing_is_refused(tiny_config: Config, tmp_path: Path) -> None:
    start_run(tiny_config(method="float", epochs=1), tmp_path / "teacher")
    with pytest.raises(ConfigError, match="does not fit: preprocessing differs"):
        start_run(tiny_config(teacher=str(tmp_path / "teacher"), preprocess="unit"), tmp_path / "run")
