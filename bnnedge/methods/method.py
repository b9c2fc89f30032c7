"""The contract of a training method: what it supplies, and when the one training loop calls it.

A method never owns a loop. It gives each binary layer a ``Binarizer``. If it does not train the weights by the run's
optimizer, it also supplies an optimizer of its own for the parameters that it claims. The loop in
``bnnedge/train/loop.py`` calls

1. ``attach(model)`` once;
2. ``phases(epochs)`` once;
3. ``start_phase(model, index)`` before a phase, then ``make_optimizer(model, size)``;
4. ``start_epoch(model, epoch, epochs)`` before the first step of every epoch;
5. in each step: ``passes`` forward and backward passes, whose gradients are averaged, ``before_step(model)``, the
   steps of both optimizers, ``after_step(model)``;
6. ``predict(model, images)`` in every evaluation, and ``layer_metrics(layer)`` after every epoch.

With several processes each of them calls the hooks, with the same weights, the same gradients of the whole batch and
the same numbers of steps and images. A hook must do the same in all of them. After 4, every process gets the parameters
and buffers of the main one. The passes of 5 go over each micro-batch of a batch in turn.

When a run is resumed, 1 to 4 happen again in this order, and then the saved weights and optimizer states are loaded
over what they did; ``start_epoch`` is called once more after that. So whatever must survive has to be a parameter or a
buffer of the model or its binarizers, an entry of the optimizer's state dict, or a function of phase and epoch. Each
phase gets new optimizers.

In training mode a binarizer may return any weight that the method trains with. In eval mode it returns exactly -1 and
+1, since the deploy form is the model in eval mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from bnnedge.binarization.binarizer import Binarizer
from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryLayer, binary_layers
from bnnedge.tasks.task import Task


@dataclass(frozen=True)
class Defaults:
    """Settings of training that hold where the user gives none: those that were published with the method."""

    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    """Momentum of SGD; the other optimizers have none."""
    weight_decay: float = 0.0
    lr_type: str = "cos"
    lr_every: str = "epoch"
    """How often the learning rate changes: epoch or step."""
    warm_up: int = 0
    """Epochs at the start in which the learning rate rises linearly."""


@dataclass(frozen=True)
class Phase:
    """A part of the training that starts with new optimizers and at the beginning of the learning-rate schedule."""

    name: str
    epochs: int
    weight_decay: float | None = None
    """The weight decay of this phase; None stands for the run's."""


@dataclass(frozen=True)
class PhaseSize:
    """How long the phase is that is about to be trained; schedules in steps depend on it."""

    epochs: int
    steps_per_epoch: int
    train_images: int

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole phase."""
        return self.epochs * self.steps_per_epoch


OptionsT = TypeVar("OptionsT")


class Method(Generic[OptionsT]):
    """One training method.

    Subclasses set ``paper`` and ``Options`` and define ``make_binarizer``; the rest is optional.
    """

    paper: ClassVar[str]
    """Authors, year, title, identifier."""
    Options: ClassVar[type[Any]]
    """The dataclass of the method's own options, with one sentence under each field."""
    defaults: ClassVar[Defaults] = Defaults()
    trains_bits: ClassVar[bool] = True
    """Whether the method trains binary weights. The float baseline does not, and so has no deploy form."""
    samples_weights: ClassVar[bool] = False
    """Whether a pass in training draws random weights from the global generator. If so, the loop gives all processes
    and all micro-batches of a pass the same random numbers, so that they see the same weights; the noise of dropout
    repeats in them too. Otherwise each process has its own random numbers."""
    has_latent_weights: ClassVar[bool] = True
    """Whether the trained weights are floats. If they are -1 and +1 themselves, an average of them means nothing."""

    task: Task | None = None
    """What the network is trained for, set by a run before ``attach``. None, as in a loop of the user's own: a method
    that has to know takes it for classification."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @property
    def passes(self) -> int:
        """Number of forward and backward passes in one step, all over the same images."""
        return 1

    @property
    def needs_init(self) -> bool:
        """Whether a new run must have ``--init``, because the options leave out the phases that train from scratch."""
        return False

    @property
    def init_method(self) -> str | None:
        """The method that must have trained the run given by ``--init``; None if any will do."""
        return None

    def make_binarizer(self, layer: BinaryLayer) -> Binarizer:
        """The binarizer of one layer. It is called once for each layer, in the order of ``binary_layers``."""
        raise NotImplementedError

    def attach(self, model: nn.Module) -> None:
        """Give every binary layer of ``model`` its binarizer, in the mode of the layer, and frozen if its weight is."""
        for layer in binary_layers(model).values():
            binarizer = self.make_binarizer(layer).to(layer.weight.device, layer.weight.dtype)
            layer.binarizer = binarizer.train(layer.training)
            if not layer.weight.requires_grad:
                binarizer.requires_grad_(False)

    def phases(self, epochs: int) -> tuple[Phase, ...]:
        """The phases of a run; their epochs add up to ``epochs``."""
        return (Phase("training", epochs),)

    def start_phase(self, model: nn.Module, index: int) -> None:
        """Hook before phase ``index``, counted from 0, and its optimizers; it may set ``requires_grad`` to freeze."""

    def make_optimizer(self, model: nn.Module, size: PhaseSize) -> torch.optim.Optimizer | None:
        """The method's optimizer of the parameters that it claims; the run's optimizer takes all others.

        The loop calls its ``zero_grad`` and ``step`` and saves its state dict, but sets no learning rate in it.
        """
        return None

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether the run's weight decay applies to this parameter of the run's optimizer."""
        return True

    def averages(self, name: str) -> bool:
        """Whether an EMA of the weights averages the entry ``name`` of the model's state dict; else it is copied."""
        return True

    def start_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
        """Hook before the first step of epoch ``epoch``, counted from 0, of the ``epochs`` of the phase."""

    def before_step(self, model: nn.Module) -> None:
        """Hook between the backward pass and the optimizers' steps: the gradients are new, the weights still old."""

    def after_step(self, model: nn.Module) -> None:
        """Hook after the optimizers' steps."""

    def predict(self, model: nn.Module, images: Tensor) -> Tensor:
        """The output of ``model``, which is in eval mode, for ``images`` [N, C, H, W].

        A method with a posterior over the weights may average the outputs of several networks by ``task.average``.
        """
        return model(images)  # type: ignore[no-any-return]

    @torch.no_grad()
    def layer_metrics(self, layer: BinaryLayer) -> dict[str, float]:
        """Numbers about one layer's weights. They and their means over all layers are logged after every epoch."""
        magnitude = layer.weight.abs()
        return {
            "latent_magnitude": float(magnitude.mean()),
            "distance_to_binary": float((magnitude - 1).abs().mean()),  # This is the mean of |w - sign(w)|.
        }


def check_phases(phases: Sequence[int], count: int) -> None:
    """Raise ``ConfigError`` unless ``phases`` are some of 1 to ``count``, in order."""
    if not phases or any(a >= b for a, b in zip((0, *phases), (*phases, count + 1), strict=True)):
        every = ",".join(map(str, range(1, count + 1)))
        raise ConfigError(f"phases must be some of {every}, in this order, got {','.join(map(str, phases)) or 'none'}")


def share_epochs(epochs: int, shares: Sequence[float], given: Sequence[int] = ()) -> tuple[int, ...]:
    """The epochs of each phase: ``given``, or if that is empty ``epochs`` in proportion to ``shares``.

    A phase has at least one epoch.

    Raises ``ConfigError`` if ``given`` does not fit or there are fewer epochs than phases.
    """
    if given:
        if len(given) != len(shares) or sum(given) != epochs or min(given) < 1:
            raise ConfigError(
                f"phase_epochs must be {len(shares)} numbers from 1 that add up to epochs ({epochs}), got {given}"
            )
        return tuple(given)
    if epochs < len(shares):
        raise ConfigError(f"{len(shares)} phases need at least {len(shares)} epochs, got {epochs}")
    lengths: list[int] = []
    for index, share in enumerate(shares):
        left = epochs - sum(lengths)
        later = len(shares) - index - 1
        lengths.append(min(max(round(left * share / sum(shares[index:])), 1), left - later))
    return tuple(lengths)
