"""The scores in rows and logs, with the label and the unit that their task gives them."""

from __future__ import annotations

from collections.abc import Iterable

from bnnedge.benchmarks.rows import BenchmarkRow
from bnnedge.errors import printable
from bnnedge.tasks import TASKS
from bnnedge.tasks.task import Score

_MANY_OUTPUTS = 2**20
"""A task with as many outputs as this measures all of its scores."""


def scores_of_task(task: str | None) -> tuple[Score, ...]:
    """All scores that the task called ``task`` can have; none for a task that is not known here."""
    if task is None or task not in TASKS:
        return ()
    scores: tuple[Score, ...] = TASKS.load(task)(_MANY_OUTPUTS).scores
    return scores


def named(names: Iterable[str], task: str | None) -> list[Score]:
    """The scores called ``names``, in the order of the task; one that the task does not know is its bare name."""
    known = scores_of_task(task)
    found = list(names)
    unknown = [Score(name, printable(name, most=60)) for name in found if name not in {score.name for score in known}]
    return [score for score in known if score.name in found] + unknown


def first_score(row: BenchmarkRow) -> Score | None:
    """The first score that was measured; if none was, the one that would have been, or None."""
    scores = named(row.scores, row.task) or scores_of_task(row.task)
    return scores[0] if scores else None


def number(score: Score, value: float) -> str:
    """``value`` without its unit, which stands in the header of its column."""
    return f"{100 * value:.2f}" if score.unit == "%" else f"{value:.4g}"


def header(score: Score) -> str:
    """Two lines for the head of a column: label and unit."""
    return f"{score.label}\n{score.unit}"


def labelled(row: BenchmarkRow) -> str:
    """The first score with its label, such as ``top-1 97.50%``; empty if none was measured."""
    score = first_score(row)
    if score is None or score.name not in row.scores:
        return ""
    return f"{score.label} {score.text(row.scores[score.name])}"
