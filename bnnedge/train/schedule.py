"""The learning rate as a function of the epoch alone, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from bnnedge.config import RunConfig


def learning_rate(config: RunConfig, epoch: int) -> float:
    """Learning rate of epoch ``epoch`` (from 0) of a resolved config; E epochs, w of them warm-up, peak lr.

    - e < w: ``lr (e + 1) / w`` (linear warm-up);
    - cos: ``lr (1 + cos(pi (e - w) / (E - w))) / 2``, Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5 with one
      period and minimum 0;
    - step: ``lr gamma^n`` with n the number of ``lr_steps`` that are at most e.
    """
    lr, warm_up = config.lr, config.warm_up or 0
    assert lr is not None, "the config is not resolved"
    if epoch < warm_up:
        return lr * (epoch + 1) / warm_up
    if config.lr_type == "step":
        return lr * config.lr_gamma ** sum(step <= epoch for step in config.lr_steps)
    return lr * (1 + math.cos(math.pi * (epoch - warm_up) / (config.epochs - warm_up))) / 2
