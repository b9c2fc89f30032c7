"""The settings that the user gave to ``bnnedge train``: a file, ``--set`` and flags, merged and checked by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from bnnedge.cli.settings import Setting, method_settings, run_settings
from bnnedge.config import RunConfig, read_settings
from bnnedge.errors import BnnedgeError, ConfigError
from bnnedge.methods import METHODS
from bnnedge.options import convert


def merge(
    flags: Mapping[str, Any], assignments: Sequence[str], file: Path | None, *, check_options: bool
) -> dict[str, Any]:
    """Return the settings as the mapping that ``RunConfig.from_dict`` takes.

    Flags and ``--set`` assignments win over the file. ``check_options`` refuses options that the method lacks; a run
    that is resumed knows its own method. Raises ``ConfigError`` for a setting that is unknown or given twice.
    """
    typed = {name: value for name, value in flags.items() if value is not None}
    for assignment in assignments:
        name, value = _parse(assignment)
        if name in typed:
            raise ConfigError(f"{name} is given twice; it was {typed[name]!r}, then {value!r}")
        typed[name] = value
    if "method" in typed:
        METHODS.check(typed["method"])
    found = {} if file is None else _read(file, typed.get("method"))
    settings = {**found, **typed}
    given = {name: value for name, value in settings.items() if name in _of_runs()}
    options = {name: value for name, value in settings.items() if name not in given}
    if check_options:
        _check(list(options), str(settings.get("method", RunConfig.method)))
    return {**given, "method_options": options} if options else given


def _of_runs() -> dict[str, Setting]:
    return {setting.name: setting for setting in run_settings()}


def _parse(assignment: str) -> tuple[str, str]:
    name, equals, value = assignment.partition("=")
    name = name.strip().lower().replace("-", "_")
    if not equals or not name:
        raise ConfigError(f"--set expects key=value, got {assignment!r}")
    return name, value.strip()


def _read(file: Path, method: str | None) -> dict[str, Any]:
    """Return the settings and method options in a file by name, checked and converted, so that messages name it.

    Options of the method stand under ``method_options``, as in a run's config.yaml, or beside the settings.
    """
    values = read_settings(file)
    nested = values.pop("method_options", None) or {}
    if not isinstance(nested, Mapping):
        raise ConfigError(f"{file}: method_options must be a mapping, got {nested!r}")
    try:
        for name in nested:
            if name in _of_runs():
                raise ConfigError(f"{name} is a setting of every run; it must stand outside method_options")
            if name in values:
                raise ConfigError(f"{name} is given twice, under method_options and outside")
        settings = {**values, **{str(name): value for name, value in nested.items()}}
        chosen = method or str(settings.get("method", RunConfig.method))
        _check([name for name in settings if name not in _of_runs()], chosen)
        known = _of_runs() | {setting.name: setting for setting in method_settings(chosen)}
        return {name: convert(name, value, known[name].annotation) for name, value in settings.items()}
    except BnnedgeError as error:
        raise ConfigError(f"{file}: {error}") from None


def _check(options: Sequence[str], method: str) -> None:
    """Refuse a name that is neither a setting of every run nor an option of the method."""
    METHODS.check(method)
    own = [setting.name for setting in method_settings(method)]
    for name in options:
        if name not in own:
            near = get_close_matches(name, [*_of_runs(), *own])
            raise ConfigError(
                f"method {method} has no option {name!r}; its options: {', '.join(own) or 'none'}; "
                f"{f'did you mean {near[0]}? ' if near else ''}`bnnedge train --help` lists all settings"
            )
