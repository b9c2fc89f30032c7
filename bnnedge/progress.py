"""What the user sees while a run trains or is evaluated: a bar on a terminal, one line an epoch anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, track

T = TypeVar("T")


def shown(items: Iterable[T], what: str, count: int, console: Console | None) -> Iterable[T]:
    """The same ``count`` items, with a bar that goes away again if ``console`` is a terminal."""
    hidden = console is None or not console.is_terminal
    return track(items, what, count, console=console, transient=True, disable=hidden)


class TrainingProgress:
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

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Show which epoch begins; ``epoch`` counts from 1."""
        self._bar.update(self._task, description=f"epoch {epoch}/{epochs}")

    def step(self, loss: float, score: str) -> None:
        """One optimizer step is done; ``loss`` and the first score, as text, are means over the epoch so far."""
        self._bar.update(self._task, advance=1, loss=loss, score=score)

    def line(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        self._console.print(text, markup=False)
