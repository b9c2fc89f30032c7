"""Test score of every method on one data set, beside the float32 twin of the same network."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnnedge.benchmarks.report.scores import scores_of_task
from bnnedge.config import RunConfig
from bnnedge.files import write_output
from bnnedge.tasks.task import Score
from bnnedge.train.run_folder import RunFolder
from bnnedge.train.start import resume_run, start_run

FLOAT = "float"

EPOCHS = {"vgg_small_1w1a": 8, "resnet20_1w1a": 40}
"""Epochs of a run by model, sized for the digits at 8 x 8 pixels on one core."""

SHORT_RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "vgg_small_1w1a": {"bayesbinn": {"posterior_lr": 0.01}, "bnew": {"rho": 0.04}},
    "resnet20_1w1a": {
        **{method: {"lr": 0.03} for method in ("ste", "xnor", "bop", "bop2", "bmd", "float")},
        "bayesbinn": {"lr": 0.03, "posterior_lr": 0.01},
        "bnew": {"lr": 0.05, "rho": 0.005},
        "reactnet": {"lr": 0.03},
        "rbnn": {"warm_up": 5},
    },
}
"""Settings by model and method. They replace published ones that are meant for runs of far more steps, some 10^5, or
far larger batches than these."""


@dataclass(frozen=True)
class Trial:
    """One run: the resolved settings, and the result on the test split."""

    config: RunConfig
    test_score: float
    """The value of ``score``."""

    @property
    def score(self) -> Score:
        """The first score of the run's task."""
        return _first_score(self.config)


def train(
    configs: Sequence[RunConfig], folder: Path, say: Callable[[str], None] = lambda line: None
) -> Iterator[Trial]:
    """The runs of ``configs`` in ``folder``: those that are not there are trained, one that was cut off is continued.

    ``say`` gets a line a run, with the time left if the runs to come take as long as those of the same model so far.
    """
    took_s: dict[str, list[float]] = {}
    for number, config in enumerate(configs, start=1):
        out = run_folder(config, folder)
        started, finished = time.perf_counter(), RunFolder(out).result.exists()
        result = resume_run(out, _given(config)) if RunFolder(out).config.exists() else start_run(config, out)
        if not finished:
            took_s.setdefault(config.model, []).append(time.perf_counter() - started)
        known = {model: statistics.mean(times) for model, times in took_s.items()}
        other = statistics.mean(known.values()) if known else 0.0
        left_s = sum(known.get(c.model, other) for c in configs[number:])
        resolved = RunConfig.read(RunFolder(out).config)
        score = _first_score(resolved)
        value = result[f"test_{score.name}"]
        say(f"{number}/{len(configs)}  {out.name}  test {score.text(value)}  {left_s / 60:.0f} min left")
        yield Trial(resolved, value)


def _first_score(config: RunConfig) -> Score:
    # Runs that were made before there were tasks name none, and all of them are classification.
    return scores_of_task(config.task or "classification")[0]


def short_run(config: RunConfig) -> RunConfig:
    """``config`` with the settings of ``SHORT_RUNS``, which may be the run's or the method's own."""
    chosen = SHORT_RUNS.get(config.model, {}).get(config.method, {})
    own = {name: value for name, value in chosen.items() if not hasattr(config, name)}
    return dataclasses.replace(
        config,
        method_options={**own, **config.method_options},
        **{name: value for name, value in chosen.items() if name not in own},
    )


def run_folder(config: RunConfig, folder: Path) -> Path:
    """The folder of the run of ``config``."""
    return folder / f"{config.method}_{_short(config.model)}_{config.dataset}_{config.seed}"


def _short(model: str) -> str:
    """The name of a model without the path to its file."""
    return model.rpartition(":")[2]


def _given(config: RunConfig) -> dict[str, Any]:
    """The settings that differ from the defaults, so that a folder of other runs is refused."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if getattr(config, f.name) != f.default}


def table(trials: Sequence[Trial]) -> str:
    """A Markdown table with a row a method: for each model mean and standard deviation over the seeds, and the
    difference from the float32 twin."""
    models = list(dict.fromkeys(trial.config.model for trial in trials))
    methods = list(dict.fromkeys(trial.config.method for trial in trials))
    methods.sort(key=lambda method: method == FLOAT)  # the twin stands last
    scores: dict[tuple[str, str], list[float]] = {}
    for trial in trials:
        scores.setdefault((trial.config.method, trial.config.model), []).append(trial.test_score)
    lines = ["| method | " + " | ".join(f"{model} | to float32" for model in models) + " | settings |"]
    lines.append("|---|" + "---:|---:|" * len(models) + "---|")
    for method in methods:
        cells = [method]
        for model in models:
            own, twin = scores.get((method, model)), scores.get((FLOAT, model))
            scale = 100 if trials[0].score.unit == "%" else 1
            cells.append(_mean([scale * value for value in own]) if own else "")
            cells.append(f"{scale * (statistics.mean(own) - statistics.mean(twin)):+.2f}" if own and twin else "")
        lines.append(f"| {' | '.join([*cells, _settings([t.config for t in trials if t.config.method == method])])} |")
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _settings(configs: Sequence[RunConfig]) -> str:
    """One method's settings, with the model where those of its models differ."""
    texts = {config.model: _setting(config) for config in configs}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{_short(model)}: {text}" for model, text in texts.items())


def _setting(config: RunConfig) -> str:
    chosen = SHORT_RUNS.get(config.model, {}).get(config.method, {})
    own = "".join(f", {name} {config.method_options[name]:g}" for name in chosen if name in config.method_options)
    warm_up = f", warm-up {config.warm_up}" if config.warm_up else ""
    return f"{config.optimizer} {config.lr:g}, {config.lr_type}{warm_up}, decay {config.weight_decay:g}{own}"


def caption(trials: Sequence[Trial]) -> str:
    """A sentence that says what the runs have in common."""
    config = trials[0].config
    seeds = sorted({trial.config.seed for trial in trials})
    epochs = {_short(trial.config.model): trial.config.epochs for trial in trials}
    score, size = trials[0].score, config.image_size or ()
    return (
        f"{config.dataset}, {'x'.join(map(str, size * 2 if len(size) == 1 else size))}, "
        f"{', '.join(f'{model} {count} epochs' for model, count in epochs.items())} of batch size {config.batch_size}, "
        f"seeds {', '.join(map(str, seeds))}, {config.device}: test {score.label} "
        f"in {'percent' if score.unit == '%' else score.unit or 'its own unit'} (mean and standard deviation over the "
        f"seeds) of the weights with the best validation {score.label}."
    )


def write_rows(trials: Sequence[Trial], path: Path) -> None:
    """One JSON line a run: its test score and the resolved settings."""
    rows = [{f"test_{trial.score.name}": trial.test_score, **trial.config.to_dict()} for trial in trials]
    write_output(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
