"""Flags, help and defaults of ``bnnedge train`` come from the fields of ``RunConfig`` and of the methods' options."""

from __future__ import annotations

import dataclasses
import re

import pytest

from bnnedge.cli import main
from bnnedge.cli.registries import REGISTRIES
from bnnedge.cli.settings import flags_of_all, method_settings, run_settings
from bnnedge.config import RunConfig
from bnnedge.methods import METHODS
from tests.cli.command_line import Capture

DEFAULTS = {
    "method": "rbnn",
    "model": "resnet20_1w1a",
    "dataset": "digits",
    "epochs": 30,
    "batch_size": 128,
    "seed": 0,
    "data_root": None,
    "image_size": None,
    "preprocess": None,
    "augment": "own",
    "validation_split": "own",
    "validate_on": "val",
    "task": None,
    "init": None,
    "optimizer": None,
    "momentum": None,
    "weight_decay": None,
    "ema": None,
    "lr": None,
    "lr_type": None,
    "lr_every": None,
    "lr_end": 0.0,
    "lr_power": 1.0,
    "lr_steps": (),
    "lr_decay_epochs": None,
    "lr_gamma": 0.1,
    "warm_up": None,
    "device": "auto",
    "precision": "fp32",
    "compile": False,
    "kernels": "auto",
    "recompute": False,
    "accumulate": 1,
    "threads": None,
    "sync_batch_norm": True,
    "teacher": None,
    "distill_weight": 1.0,
    "distill_temperature": 1.0,
    "method_options": {},
}
GROUPS = [
    "Run",
    "Data",
    "Network",
    "Optimizer",
    "Learning rate",
    "Speed and memory",
    "Several processes",
    "Teacher",
]


def help_text(*arguments: str, capsys: Capture) -> str:
    """Return the help of ``bnnedge train`` without spaces, since lines are broken anywhere."""
    assert main(["train", *arguments, "--help"]) == 0
    return "".join(capsys.readouterr().out.split())


def headings(*arguments: str, capsys: Capture) -> list[str]:
    assert main(["train", *arguments, "--help"]) == 0
    return re.findall(r"^(\w.*):$", capsys.readouterr().out, flags=re.MULTILINE)


def test_the_defaults_are_those_that_are_documented() -> None:
    """They are part of what ``bnnedge train`` means, so a change of one is a decision."""
    assert {f.name: getattr(RunConfig(), f.name) for f in dataclasses.fields(RunConfig)} == DEFAULTS


def test_help_shows_every_setting_with_sentence_choices_and_default(capsys: Capture) -> None:
    text = help_text(capsys=capsys)
    settings = [*run_settings(), *(s for method in METHODS for s in method_settings(method))]
    assert {s.name for s in run_settings()} == set(DEFAULTS) - {"method_options"}
    for setting in settings:
        assert setting.sentence
        flag = setting.flag if setting.is_switch else setting.flag + setting.placeholder
        assert "".join(f"{flag}{setting.sentence}".split()) in text
        assert "".join(setting.help.split()) in text
    for shown in (
        "Passes over the training images. [default: 30]",
        "--lr-end NUMBER Learning rate at which the cos and poly schedules end. [default: 0.0]",
        "--optimizer sgd|adam|adamw",
        "--validation-split own|none|NUMBER",
        "--lr-steps INTEGER,...",
        "--compile / --no-compile Train through torch.compile. [default: off]",
        "[default: on]",
        "[default: $BNNEDGE_DATA]",
        "[default: 1,2,3]",
        "--config",
        "--gpus",
    ):
        assert shown.replace(" ", "") in text


def test_help_has_the_groups_of_the_fields_and_the_methods(capsys: Capture) -> None:
    of_methods = [f"Method {name}" for name in METHODS if method_settings(name)]
    assert headings(capsys=capsys) == GROUPS + of_methods


@pytest.mark.parametrize("words", [["--method", "rbnn"], ["--method=rbnn"], ["--METHOD", "rbnn"]])
def test_help_of_a_method_shows_its_options_alone(words: list[str], capsys: Capture) -> None:
    assert headings(*words, capsys=capsys) == [*GROUPS, "Method rbnn"]
    text = help_text(*words, capsys=capsys)
    assert "--rotation-update" in text
    assert "--mc-steps" not in text


def test_help_of_a_method_without_options_has_no_heading_for_it(capsys: Capture) -> None:
    assert headings("--method", "float", capsys=capsys) == GROUPS


def test_help_follows_a_changed_default(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    @dataclasses.dataclass(frozen=True)
    class Longer(RunConfig):
        epochs: int = dataclasses.field(default=25, metadata={"group": "Run"})
        """Passes over the training images."""

    monkeypatch.setattr("bnnedge.cli.settings.RunConfig", Longer)
    run_settings.cache_clear()
    try:
        assert "Passesoverthetrainingimages.[default:25]" in help_text(capsys=capsys)
    finally:
        run_settings.cache_clear()


def test_no_flag_has_two_meanings() -> None:
    """One flag serves all methods that have an option of its name, so its form must be the same in all."""
    of_runs = {s.name for s in run_settings()} | {"config", "out", "resume", "set", "gpus", "processes", "help"}
    for method in METHODS:
        for setting in method_settings(method):
            assert setting.name not in of_runs
            assert setting.is_switch == flags_of_all()[setting.name].is_switch


def test_settings_refer_to_lists_that_exist() -> None:
    assert {s.kind for s in run_settings() if s.kind} <= set(REGISTRIES)
