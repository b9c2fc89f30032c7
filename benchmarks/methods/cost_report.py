"""The Markdown report of the cost of training steps, made from rows alone."""

from __future__ import annotations

from collections.abc import Sequence

from bnnedge.benchmarks.methods.cost import PEER, CostRow, Setting
from bnnedge.errors import BenchmarkError

TIME_LIMIT = 1.15
MEMORY_LIMIT = 1.0
REASONS = {
    "rbnn": "it standardizes every input and every filter, and rotates the weights forward and their gradient back "
    "in each step. The rotations are 2 (a + b) operations for each weight of filters of a x b, 5.2 GFLOP whatever the "
    "batch, where the binary convolutions of a batch of 32 take 106. Of what it adds to plain STE's step they are "
    "about a third; half is the standardization of 11 million weights with its gradient and those of alpha and beta, "
    "the rest that of the inputs. In memory the rotated weights, kept for the gradient, are as large as Adam's second "
    "moment, which its SGD has not. Before an epoch it learns the rotations",
    "bayesbinn": "it draws a random number for each weight in each step",
}
"""Why the algorithm of a contender needs more than plain STE does."""


def table(rows: Sequence[CostRow]) -> str:
    """A Markdown table with ratios to the peer. Raises ``BenchmarkError`` if the peer is not among ``rows``."""
    peer = next((row for row in rows if row.contender == PEER), None)
    if peer is None:
        raise BenchmarkError(f"a table of costs needs a row of {PEER}")
    lines = ["| | passes | step, ms (p20, p80) | time | memory, MiB | memory | before an epoch, ms |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        memory, share = "", ""
        if row.memory_bytes is not None and peer.memory_bytes:
            memory, share = f"{row.memory_bytes / 2**20:.0f}", f"{row.memory_bytes / peer.memory_bytes:.2f}"
        step = f"{row.p50_ms:.1f} ({row.p20_ms:.1f}, {row.p80_ms:.1f})"
        cells = (
            row.contender,
            row.passes,
            step,
            f"{row.time_ratio:.2f}",
            memory,
            share,
            f"{row.epoch_ms:.0f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def report(rows: Sequence[CostRow], command: str) -> str:
    """The Markdown text for what ``command`` measured: machine, table, and why some rows are above the limits."""
    environment, setting = rows[0].environment, Setting(**rows[0].setting)
    what = f"{TIME_LIMIT} times the time or {MEMORY_LIMIT} times the memory of plain STE"
    over = _over_the_limits(rows)
    reasons = [f"- {label}, {ratios}: {REASONS.get(label, 'not known')}." for label, ratios in over.items()]
    paragraphs = [
        "# One training step of each method",
        f"Made by `{command}`.",
        f"{caption(setting)}: {environment['cpu']}, torch {environment['versions']['torch']}, "
        f"{environment['date_utc'][:10]}. Ratios of time are to plain PyTorch STE in the same turn, in the median. "
        "Memory is what training adds to a process that has taken a step on two images: weights, optimizer, gradients "
        "and what is kept between forward and backward.",
        table(rows).rstrip(),
        f"Above {what}, and why:" if over else f"None takes above {what}.",
    ]
    return "\n\n".join([*paragraphs, "\n".join(reasons)]).rstrip() + "\n"


def caption(setting: Setting) -> str:
    """The setting in words."""
    return (
        f"{setting.model}, {setting.image_size}x{setting.image_size}, batch {setting.batch_size}, {setting.device}, "
        f"{setting.threads} thread{'s' * (setting.threads > 1)}"
    )


def _over_the_limits(rows: Sequence[CostRow]) -> dict[str, str]:
    """What is above the limits, as the table rounds it, by the label of the contender."""
    peer = next(row for row in rows if row.contender == PEER)
    found = {}
    for row in rows:
        ratio = round(row.time_ratio or 0.0, 2)
        what = [f"time {ratio}"] if ratio > TIME_LIMIT else []
        if row.memory_bytes is not None and peer.memory_bytes:
            ratio = round(row.memory_bytes / peer.memory_bytes, 2)
            what += [f"memory {ratio}"] if ratio > MEMORY_LIMIT else []
        if what:
            found[row.contender] = " and ".join(what)
    return found
