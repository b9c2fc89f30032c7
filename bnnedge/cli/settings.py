"""The settings of ``bnnedge train`` as flags: made from ``RunConfig`` and from the options of the methods.

Each setting's sentence, default, choices and group are said once, at its field. Values stay text here; they are
converted by ``bnnedge.options`` so that flags, ``--set`` and files are read and refused alike.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

import typer

from bnnedge.cli.option_source import read_options
from bnnedge.cli.registries import Complete, complete_names, complete_words
from bnnedge.config import RunConfig
from bnnedge.methods import METHODS
from bnnedge.options import field_docs


@dataclass(frozen=True)
class Setting:
    """One setting of a run, or one option of a method."""

    name: str
    annotation: Any
    default: Any
    sentence: str
    group: str
    """Heading under which the help shows it."""
    unset: str = "none"
    """What a default of None stands for."""
    kind: str = ""
    """The registry of the names that it takes; empty for none."""
    metavar: str = ""
    """Placeholder of the value; empty for one made from the annotation."""

    @property
    def is_switch(self) -> bool:
        """Whether it is set by ``--name`` and ``--no-name``, without a value."""
        return self.annotation is bool

    @property
    def flag(self) -> str:
        """The flag, or for a switch both, as typer declares it."""
        name = flag_name(self.name)
        return f"--{name}/--no-{name}" if self.is_switch else f"--{name}"

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes; empty if it takes anything."""
        return tuple(word for kind in _members(self.annotation) for word in _words(kind))

    @property
    def placeholder(self) -> str:
        """What stands for the value in the help, e.g. ``INTEGER`` or ``sgd|adam|adamw``."""
        if self.metavar:
            return self.metavar
        return "NAME" if self.kind else "|".join(_placeholder(kind) for kind in _members(self.annotation))

    @property
    def help(self) -> str:
        """The sentence, where to find the names that it takes, and the default."""
        where = f" See `bnnedge list {self.kind}`." if self.kind else ""
        return f"{self.sentence}{where} [default: {self._default}]"

    @property
    def complete(self) -> Complete | None:
        """Completion of the value in a shell; None where nothing is known."""
        if self.kind:
            return complete_names(self.kind)
        return complete_words(self.choices) if self.choices else None

    @property
    def row(self) -> tuple[str, str]:
        """The two columns of the option in the help."""
        shown = self.flag.replace("/", " / ")
        return (shown if self.is_switch else f"{shown} {self.placeholder}"), self.help

    @property
    def _default(self) -> str:
        if self.default is None:
            return self.unset
        if self.is_switch:
            return "on" if self.default else "off"
        return as_typed(self.default)


def flag_name(name: str) -> str:
    """Return a setting's name as it stands in its flag; typed flags are read with underscores and capitals, too."""
    return name.replace("_", "-").lower()


def as_typed(value: Any) -> str:
    """Return a default as one would type it."""
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


@cache
def run_settings() -> tuple[Setting, ...]:
    """Return the settings of every run, in the order of ``RunConfig``."""
    hints, docs = typing.get_type_hints(RunConfig), field_docs(RunConfig)
    return tuple(
        Setting(
            f.name,
            hints[f.name],
            f.default,
            docs[f.name],
            **{k: v for k, v in f.metadata.items() if v},
        )
        for f in dataclasses.fields(RunConfig)
        if f.name != "method_options"
    )


@cache
def method_settings(method: str) -> tuple[Setting, ...]:
    """Return the options of a registered method, without importing the method."""
    options = read_options(METHODS.path(method))
    return tuple(Setting(o.name, o.annotation, o.default, o.sentence, f"Method {method}") for o in options)


def flags_of_all() -> dict[str, Setting]:
    """Return the settings of every run and of every method, one a name; methods share options of the same name."""
    of_methods = (setting for method in METHODS for setting in method_settings(method))
    return {setting.name: setting for setting in (*of_methods, *run_settings())}


CommandT = typing.TypeVar("CommandT", bound=Callable[..., Any])


def with_settings_as_flags(command: CommandT) -> CommandT:
    """Give ``command``, in place of its ``**`` parameter, a flag for each setting; None stands for one not given."""
    own = inspect.signature(command, eval_str=True)
    kept = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(setting))
        for name, setting in flags_of_all().items()
    ]
    command.__signature__ = own.replace(parameters=[*kept, *flags])  # type: ignore[attr-defined]
    return command


def _annotation(setting: Setting) -> Any:
    metavar = None if setting.is_switch else setting.placeholder
    option = typer.Option(setting.flag, metavar=metavar, help=setting.help, autocompletion=setting.complete)
    return Annotated[bool | None if setting.is_switch else str | None, option]


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a union, without None, or the type itself."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return tuple(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return (annotation,)


def _words(kind: Any) -> tuple[str, ...]:
    origin: Any = typing.get_origin(kind)
    return tuple(map(str, typing.get_args(kind))) if origin is Literal else ()


def _placeholder(kind: Any) -> str:
    if words := _words(kind):
        return "|".join(words)
    if typing.get_origin(kind) is tuple:
        return f"{_placeholder(typing.get_args(kind)[0])},..."
    return {int: "INTEGER", float: "NUMBER"}.get(kind, "TEXT")
