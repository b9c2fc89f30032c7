"""What the user sees while long work goes on: a bar on a terminal; of training also one line an epoch anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
Report = Callable[[str, int, int], None]
"""Is told what is being done, how many parts of it are done and how many there are."""
_REPORT_EVERY_S = 0.25


def shown(items: Iterable[T], what: str, count: int, console: Console | None) -> Iterable[T]:
    """The same ``count`` items, with a bar that goes away again if ``console`` is a terminal."""
    hidden = console is None or not console.is_terminal
    return track(items, what, count, console=console, transient=True, disable=hidden)


class _Drawn:
    """What is drawn inside of ``with``."""

    _bar: Progress

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()


class Bar(_Drawn):
    """A ``Report`` that draws a bar if ``console``, by default the standard error, is a terminal.

    It is drawn when something is reported and not by a thread, which would disturb what is being timed.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )

    def __call__(self, what: str, done: int, total: int) -> None:
        if not self._bar.tasks:
            self._bar.add_task(what, total=total)
        task = self._bar.tasks[0]
        if task.description != what:
            self._bar.reset(task.id, description=what, total=total)
        self._bar.update(task.id, completed=done, total=total, refresh=True)


def counted(count: int, what: str, report: Report | None) -> Iterator[int]:
    """Yield 0 .. count-1 and report at most four times a second, between them."""
    reported_at = 0.0
    for i in range(count):
        yield i
        if report is not None and (time.monotonic() - reported_at > _REPORT_EVERY_S or i == count - 1):
            report(what, i + 1, count)
            reported_at = time.monotonic()


class TrainingProgress(_Drawn):
    """A bar over the steps that are left, with running loss, first score and ETA; none where there is no terminal.

    ``silent`` prints nothing at all.
    """

    def __init__(self, steps: int, silent: bool = False) -> None:
        self._console = Console(highlight=False, soft_wrap=True, quiet=silent)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[score]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=silent or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, loss=float("nan"), score="")

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Show which epoch begins; ``epoch`` counts from 1."""
        self._bar.update(self._task, description=f"epoch {epoch}/{epochs}")

    def step(self, loss: float, score: str) -> None:
        """One optimizer step is done; ``loss`` and the first score, as text, are means over the epoch so far."""
        self._bar.update(self._task, advance=1, loss=loss, score=score)

    def line(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        self._console.print(text, markup=False)
