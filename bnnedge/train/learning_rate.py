"""The learning rate as a function of the time in the phase alone, so that a resumed run needs no scheduler state."""

from __future__ import annotations

from bnnedge import schedules
from bnnedge.config import RunConfig


def learning_rate(config: RunConfig, epoch: float, epochs: int | None = None) -> float:
    """Learning rate at ``epoch`` (from 0) of a resolved config's ``epochs``; with ``lr_every="step"`` a fraction.

    During the first ``warm_up`` = w epochs it rises linearly to ``lr``: ``lr (e + 1) / w`` in epoch e or, by the step,
    ``lr t / w`` at the time t in epochs, from 0. The others count from there to the end (cos,
    poly) or from the beginning (step, exp); see ``bnnedge/schedules.py``:

    - constant: ``lr``;
    - cos: cosine from ``lr`` to ``lr_end``;
    - poly: polynomial of ``lr_power`` from ``lr`` to ``lr_end``;
    - step: ``lr`` times ``lr_gamma`` at each of ``lr_steps``;
    - exp: ``lr`` times ``lr_gamma`` every ``lr_decay_epochs`` epochs.
    """
    lr, warm_up = config.lr, config.warm_up or 0
    assert lr is not None, "the config is not resolved"
    if epoch < warm_up:
        return lr * epoch / warm_up if config.lr_every == "step" else schedules.warm_up(epoch, warm_up, lr)
    left = (config.epochs if epochs is None else epochs) - warm_up
    if config.lr_type == "step":
        return schedules.steps(epoch, config.lr_steps, lr, config.lr_gamma)
    if config.lr_type == "exp":
        return schedules.staircase(epoch, config.lr_decay_epochs or 1, lr, config.lr_gamma)
    if config.lr_type == "poly":
        return schedules.polynomial(epoch - warm_up, left, lr, config.lr_end, config.lr_power)
    if config.lr_type == "cos":
        return schedules.cosine(epoch - warm_up, left, lr, config.lr_end)
    return lr
