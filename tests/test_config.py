"""A run's settings: cross-field checks, defaults from a method, and the YAML form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bnnedge.config import RunConfig
from bnnedge.errors import ConfigError
from bnnedge.methods import METHODS
from bnnedge.methods.method import Defaults
from bnnedge.options import field_docs


@dataclass
class MethodOptions:
    count: int = 1
    rate: float = 0.5


@dataclass
class NoOptions:
    pass


@pytest.mark.parametrize("cls", [RunConfig, *(METHODS.load(name).Options for name in METHODS)])
def test_every_setting_is_documented(cls: type[Any]) -> None:
    assert set(field_docs(cls)) == set(cls.__dataclass_fields__)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr_gamma": -0.1}, "lr_gamma must be above 0"),
        ({"momentum": 1.0}, "momentum must be from 0 to below 1"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0"),
        ({"warm_up": -1}, "warm_up must be at least 0"),
        ({"epochs": 5, "warm_up": 5}, r"warm_up \(5\) must be below epochs \(5\)"),
        ({"epochs": 5, "lr_steps": (5,)}, "lr_steps must rise"),
        ({"epochs": 5, "lr_steps": (3, 2)}, "lr_steps must rise"),
        ({"epochs": 5, "lr_steps": (0,)}, "lr_steps must rise"),
        ({"image_size": 0}, "image_size must be one number or height and width, each from 1 to 65536 pixels, got 0"),
        ({"image_size": (8, 0)}, "image_size must be one number or height and width"),
        ({"image_size": (8, 8, 8)}, "image_size must be one number or height and width"),
        ({"image_size": ()}, "image_size must be one number or height and width"),
        ({"validation_split": 0.0}, "validation_split must be above 0 and below 1, got 0"),
        ({"validation_split": 1.0}, "validation_split must be above 0 and below 1, got 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RunConfig(**values)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (None, None),
        (16, (16,)),
        ("16", (16,)),
        ([16], (16,)),
        ("24x32", (24, 32)),
        ([24, 32], (24, 32)),
        ([8, 8], (8,)),
    ],
)
def test_an_image_size_is_a_tuple_whatever_was_given(given: Any, size: tuple[int, ...] | None) -> None:
    """Checkpoints of earlier versions hold one number."""
    assert RunConfig.from_dict({"image_size": given}).image_size == size
    assert RunConfig.from_dict(RunConfig.from_dict({"image_size": given}).to_dict()).image_size == size


SGD = Defaults(optimizer="sgd", lr=0.5, momentum=0.8, weight_decay=3e-4, lr_type="cos", warm_up=2)
ADAM = Defaults(optimizer="adam", lr=0.02)


def test_resolve_takes_the_defaults_and_keeps_what_was_given() -> None:
    resolved = RunConfig(lr=0.25, method_options={"rate": "2"}).resolve(SGD, MethodOptions)
    assert (resolved.optimizer, resolved.lr, resolved.momentum, resolved.weight_decay) == ("sgd", 0.25, 0.8, 3e-4)
    assert (resolved.lr_type, resolved.warm_up) == ("cos", 2)
    assert resolved.method_options["rate"] == 2.0
    assert resolved.method_options["count"] == 1
    assert resolved.resolve(SGD, MethodOptions) == resolved


@pytest.mark.parametrize(
    ("defaults", "optimizer", "expected"),
    [
        (SGD, "adam", (1e-3, None, 0.0)),
        (SGD, "adamw", (1e-3, None, 1e-2)),
        (ADAM, "sgd", (0.1, 0.9, 1e-4)),
        (ADAM, None, (0.02, None, 0.0)),
    ],
)
def test_another_optimizer_brings_its_own_learning_rate(
    defaults: Defaults, optimizer: Any, expected: tuple[float, float | None, float]
) -> None:
    resolved = RunConfig(optimizer=optimizer).resolve(defaults, NoOptions)
    assert (resolved.lr, resolved.momentum, resolved.weight_decay) == expected


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (RunConfig(momentum=0.5), "momentum belongs to optimizer sgd"),
        (RunConfig(lr_type="step"), "lr_type step needs lr_steps"),
        (RunConfig(lr_steps=(3,)), "lr_steps belongs to lr_type step"),
        (RunConfig(method="m", method_options={"t": 1}), "method m has no option 't'"),
    ],
)
def test_settings_at_odds_are_refused(config: RunConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config.resolve(ADAM, NoOptions)


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = RunConfig(
        model="a b.py:Net", lr=1e-5, lr_type="step", lr_steps=(3, 20), method_options={"rate": 1e-7}
    ).resolve(SGD, MethodOptions)
    config.write(tmp_path / "config.yaml")
    assert RunConfig.read(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs: 3\nspeed: 1\n", "a run has no option 'speed'"),
        ("- 1\n", "should hold a setting a line, `name: value`"),
        ("epochs: [1\n", "cannot be read"),
        ("epochs: three\n", "epochs must be a whole number"),
        ("", "should hold a setting a line, `name: value`"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        RunConfig.read(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        RunConfig.read(tmp_path / "none.yaml")
