"""Test accuracy of every method on one data set, next to the float32 twin of the same network."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnnedge.config import RunConfig
from bnnedge.train.run import resume_run, start_run
from bnnedge.train.run_folder import RunFolder

FLOAT = "float"


@dataclass(frozen=True)
class Trial:
    """One run: its folder's ``result.json`` and the settings that made it."""

    config: RunConfig
    test_top1: float


def train(configs: Sequence[RunConfig], folder: Path) -> Iterator[Trial]:
    """Runs of ``configs`` in ``folder``, trained unless they are there already; one that was cut off goes on."""
    for config in configs:
        out = run_folder(config, folder)
        result = resume_run(out, _given(config)) if RunFolder(out).config.exists() else start_run(config, out)
        yield Trial(RunConfig.read(RunFolder(out).config), result["test_top1"])


def run_folder(config: RunConfig, folder: Path) -> Path:
    """Where the run of ``config`` is kept."""
    return folder / f"{config.method}_{config.model.rpartition(':')[2]}_{config.dataset}_{config.seed}"


def _given(config: RunConfig) -> dict[str, Any]:
    """The settings that differ from the defaults, so that a folder of other runs is refused."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if getattr(config, f.name) != f.default}


def table(trials: Sequence[Trial]) -> str:
    """Markdown: a row a method, for each model the mean and standard deviation over seeds and the gap to float32."""
    models = list(dict.fromkeys(trial.config.model for trial in trials))
    methods = list(dict.fromkeys(trial.config.method for trial in trials))
    methods.sort(key=lambda method: method == FLOAT)  # the twin stands last
    scores: dict[tuple[str, str], list[float]] = {}
    for trial in trials:
        scores.setdefault((trial.config.method, trial.config.model), []).append(100 * trial.test_top1)
    lines = ["| method | " + " | ".join(f"{model} | to float32" for model in models) + " | settings |"]
    lines.append("|---|" + "---:|---:|" * len(models) + "---|")
    for method in methods:
        cells = [method]
        for model in models:
            own, twin = scores.get((method, model)), scores.get((FLOAT, model))
            cells.append(_score(own) if own else "")
            cells.append(f"{statistics.mean(own) - statistics.mean(twin):+.2f}" if own and twin else "")
        config = next(trial.config for trial in trials if trial.config.method == method)
        lines.append(f"| {' | '.join([*cells, _settings(config)])} |")
    return "\n".join(lines) + "\n"


def _score(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {spread:.2f}"


def _settings(config: RunConfig) -> str:
    return f"{config.optimizer} {config.lr:g}, {config.lr_type}, decay {config.weight_decay:g}"


def caption(trials: Sequence[Trial]) -> str:
    """What the runs have in common, in one sentence."""
    config = trials[0].config
    seeds = sorted({trial.config.seed for trial in trials})
    return (
        f"{config.dataset}, {config.image_size}x{config.image_size}, {config.epochs} epochs of batch size "
        f"{config.batch_size}, seeds {', '.join(map(str, seeds))}, {config.device}: test top-1 in percent (mean and "
        "standard deviation over the seeds) of the weights with the best validation top-1."
    )


def write_rows(trials: Sequence[Trial], path: Path) -> None:
    """One JSON line a run: the resolved settings and ``test_top1``."""
    rows = [{"test_top1": trial.test_top1, **trial.config.to_dict()} for trial in trials]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
