"""The contract of a training method: what it supplies, and when the one training loop calls it.

A method never owns a loop. It gives each binary layer a ``Binarizer`` and, if a gradient step on latent weights is not
its way, an optimizer of its own for the parameters that it claims. The loop in ``bnnedge/train/loop.py`` calls

1. ``attach(model)`` once;
2. ``phases(epochs)`` once;
3. ``start_phase(model, index)`` before a phase, then ``make_optimizer(model, plan)``;
4. ``start_epoch(model, epoch, epochs)`` before the first step of every epoch;
5. in each step: ``passes`` forward and backward passes, whose gradients are averaged, ``before_step(model)``, the
   steps of both optimizers, ``after_step(model)``;
6. ``predict(model, images)`` in every evaluation, and ``layer_metrics(layer)`` after every epoch.

With several processes each calls the hooks, with the same weights, the same gradients of the whole batch and the same
numbers of steps and images; hooks must do the same in all. After 4 every process has the main one's parameters and
buffers. In 5 the passes are over each micro-batch of a batch in turn.

All of 1 to 4 happen again when a run is resumed, in this order, before the saved weights and optimizer states are
loaded over what they did; ``start_epoch`` again after it. So state that must survive lives in the parameters and
buffers of the model and its binarizers, in the state dict of the method's optimizer, or is a function of phase and
epoch. The optimizers are made anew for each phase.

In training mode a binarizer returns whatever weight the method trains with; in eval mode it returns exactly -1 and +1:
the deploy form is the model in eval mode.
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
    """SGD only."""
    weight_decay: float = 0.0
    lr_type: str = "cos"
    lr_every: str = "epoch"
    """epoch or step: how often the learning rate changes."""
    warm_up: int = 0
    """Epochs of linear learning-rate warm-up."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training with fresh optimizers and the learning-rate schedule from its beginning."""

    name: str
    epochs: int
    weight_decay: float | None = None
    """In place of the run's, if not None."""


@dataclass(frozen=True)
class Plan:
    """The size of the phase that is about to be trained, for schedules in steps."""

    epochs: int
    steps_per_epoch: int
    train_images: int

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole phase."""
        return self.epochs * self.steps_per_epoch


OptionsT = TypeVar("OptionsT")


class Method(Generic[OptionsT]):
    """One training method. Subclasses set the class attributes and ``make_binarizer``; the rest is optional."""

    paper: ClassVar[str]
    """Authors, year, title, identifier."""
    Options: ClassVar[type[Any]]
    """Dataclass of the method's own options; one sentence under each field."""
    defaults: ClassVar[Defaults] = Defaults()
    trains_bits: ClassVar[bool] = True
    """False for the float baseline alone, which has no deploy form."""
    samples_weights: ClassVar[bool] = False
    """Whether a pass in training draws random weights from the global generator. The loop then gives all processes
    and all micro-batches of a pass the same random numbers, so that they see the same weights; noise on activations,
    as dropout's, repeats in them too. Otherwise each process has its own."""
    has_latent_weights: ClassVar[bool] = True
    """False where the weights that are trained are -1 and +1 themselves, so that an average of them means nothing."""

    task: Task | None = None
    """What the network is trained for, set by a run before ``attach``. None, as in a loop of the user's own: a method
    that has to know takes it for classification."""

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    @property
    def passes(self) -> int:
        """Forward and backward passes in one step, all over the same images."""
        return 1

    @property
    def needs_init(self) -> bool:
        """Whether the options leave out the phases that train from scratch, so that a new run must have ``--init``."""
        return False

    @property
    def init_method(self) -> str | None:
        """The method that the ``--init`` run must be of, if the options make one necessary."""
        return None

    def make_binarizer(self, layer: BinaryLayer) -> Binarizer:
        """The binarizer for one layer; called once per layer, in the order of ``binary_layers``."""
        raise NotImplementedError

    def attach(self, model: nn.Module) -> None:
        """Give every binary layer of ``model`` its binarizer."""
        for layer in binary_layers(model).values():
            layer.binarizer = self.make_binarizer(layer).to(layer.weight.device)

    def phases(self, epochs: int) -> tuple[Phase, ...]:
        """How the run's epochs fall into phases; their epochs add up to ``epochs``."""
        return (Phase("training", epochs),)

    def start_phase(self, model: nn.Module, index: int) -> None:
        """Hook before phase ``index`` (from 0) and its optimizers; may freeze parameters by ``requires_grad``."""

    def make_optimizer(self, model: nn.Module, plan: Plan) -> torch.optim.Optimizer | None:
        """The method's optimizer over the parameters that it claims; the run's optimizer takes all others.

        The loop calls its ``zero_grad`` and ``step`` and saves its state dict, but sets no learning rate in it.
        """
        return None

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether the run's weight decay applies to a parameter of the run's optimizer."""
        return True

    def averages(self, name: str) -> bool:
        """Whether an EMA of the weights averages the entry ``name`` of the model's state dict, or copies it."""
        return True

    def start_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
        """Hook before the first step of epoch ``epoch`` (from 0) of the ``epochs`` of the phase."""

    def before_step(self, model: nn.Module) -> None:
        """Hook between the backward pass and the optimizers' steps: gradients are there, weights are old."""

    def after_step(self, model: nn.Module) -> None:
        """Hook after the optimizers' steps."""

    def predict(self, model: nn.Module, images: Tensor) -> Tensor:
        """The output of ``model``, which is in eval mode, for ``images`` [N, C, H, W].

        A method with a posterior over the weights may average the outputs of several networks by ``task.average``.
        """
        return model(images)  # type: ignore[no-any-return]

    @torch.no_grad()
    def layer_metrics(self, layer: BinaryLayer) -> dict[str, float]:
        """Numbers about one layer's weights, logged after every epoch; their means over the layers are, too."""
        magnitude = layer.weight.abs()
        return {
            "latent_magnitude": float(magnitude.mean()),
            "distance_to_binary": float((magnitude - 1).abs().mean()),  # mean |w - sign(w)|
        }


def check_phases(phases: Sequence[int], count: int) -> None:
    """Raise ``ConfigError`` unless ``phases`` are some of 1 to ``count``, in order."""
    if not phases or any(a >= b for a, b in zip((0, *phases), (*phases, count + 1), strict=True)):
        every = ",".join(map(str, range(1, count + 1)))
        raise ConfigError(f"phases must be some of {every}, in this order, got {','.join(map(str, phases)) or 'none'}")


def share_epochs(epochs: int, shares: Sequence[float], given: Sequence[int] = ()) -> tuple[int, ...]:
    """Epochs of each phase: ``given`` if it is not empty, else ``epochs`` in proportion to ``shares``, at least 1 each.

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
