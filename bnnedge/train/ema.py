"""Exponential moving average of the weights: what is evaluated and exported while training goes on with its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """``a <- d_t a + (1 - d_t) w`` after each step t from 0, with ``d_t = min(decay, (1 + t) / (10 + t))``.

    The average begins as the weights are when it is made. It covers every floating-point entry of the state dict for
    which ``averages(name)`` is true: latent weights, scales, batch-norm parameters and running statistics. Everything
    else is copied, and so are frozen parameters. The binary weights that are evaluated are the signs of averaged
    latent weights.

    The rising d_t is that of TensorFlow's ``ExponentialMovingAverage(num_updates)``; without it short runs would keep
    the first weights for ever.
    """

    def __init__(self, model: nn.Module, decay: float, averages: Callable[[str], bool]) -> None:
        self.decay, self.steps = decay, 0
        self._averages = averages
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        """The averaged state dict."""

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of one more step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        averaged: list[tuple[Tensor, Tensor]] = []
        copied: list[tuple[Tensor, Tensor]] = []
        for name, tensor in model.state_dict(keep_vars=True).items():
            frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
            moves = tensor.is_floating_point() and not frozen and self._averages(name)
            (averaged if moves else copied).append((self.weights[name], tensor.detach()))
        if averaged:
            own, new = zip(*averaged, strict=True)
            torch._foreach_lerp_(list(own), list(new), 1 - decay)
        for average, tensor in copied:
            average.copy_(tensor)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """A context in which ``model`` has the averaged weights; afterwards it has its own again."""
        trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(trained)

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Continue from a saved average. Raises ``KeyError`` for entries that are missing."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])
        self.steps = steps
