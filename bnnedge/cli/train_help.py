"""``bnnedge train --help``: every setting under the heading of its group, and the options of the methods by method."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from bnnedge.cli.settings import flag_name, flags_of_all, method_settings, run_settings
from bnnedge.methods import METHODS


class TrainCommand(TyperCommand):
    """The command ``train``, whose help has groups.

    With ``--method NAME`` beside ``--help``, the options of that method alone are shown.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, as click's method of this name does; ``ctx.obj`` holds the command line."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for setting in run_settings():
            groups.setdefault(setting.group, []).append(setting.row)
        settings = flags_of_all()
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if parameter.name not in settings and record is not None:
                panel = getattr(parameter, "rich_help_panel", None)
                groups.setdefault(panel or "Run", []).append(record)
        for method in _methods_to_show(ctx.obj or ()):
            groups[f"Method {method}"] = [setting.row for setting in method_settings(method)]
        for group, rows in groups.items():
            if rows:
                with formatter.section(group):
                    formatter.write_dl(rows)


def _methods_to_show(arguments: Any) -> list[str]:
    """Return the method that the command line names, or all if it names none that is known."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, _, value = word.partition("=")
        if flag_name(flag) == "--method" and (value or following) in METHODS:
            return [value or following]
    return list(METHODS)
