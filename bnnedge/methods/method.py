"""The contract of a training method: what it supplies, and when the one training loop calls it.

A method never owns a loop. It gives each binary layer a ``Binarizer``, and the loop in ``bnnedge/train/loop.py`` calls

1. ``attach(model)`` once, before the optimizer is made;
2. ``start_epoch(model, epoch, epochs)`` before the first step of every epoch, also of the first one after a resume;
3. ``after_step(model)`` after every optimizer step;
4. ``metrics(model)`` after every epoch.

State that must survive a resume lives in the binarizers' parameters and buffers, or is a function of the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from torch import nn

from bnnedge.binarization.binarizer import Binarizer
from bnnedge.layers.binary_layers import BinaryLayer, binary_layers


@dataclass(frozen=True)
class Recipe:
    """Training settings used where the user gives none; the method's published recipe."""

    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    """SGD only."""
    weight_decay: float = 0.0
    lr_type: str = "cos"
    warm_up: int = 0
    """Epochs of linear learning-rate warm-up."""


OptionsT = TypeVar("OptionsT")


class Method(Generic[OptionsT]):
    """One training method. Subclasses set the class attributes and ``make_binarizer``; hooks are optional."""

    paper: ClassVar[str]
    """Authors, year, title, identifier."""
    Options: ClassVar[type[Any]]
    """Dataclass of the method's own options; one sentence under each field."""
    recipe: ClassVar[Recipe] = Recipe()

    def __init__(self, options: OptionsT) -> None:
        self.options = options

    def make_binarizer(self, layer: BinaryLayer) -> Binarizer:
        """The binarizer for one layer; called once per layer, in the order of ``binary_layers``."""
        raise NotImplementedError

    def attach(self, model: nn.Module) -> None:
        """Give every binary layer of ``model`` its binarizer."""
        for layer in binary_layers(model).values():
            layer.binarizer = self.make_binarizer(layer).to(layer.weight.device)

    def start_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
        """Hook before the first step of epoch ``epoch`` (from 0) of ``epochs``."""

    def after_step(self, model: nn.Module) -> None:
        """Hook after every optimizer step."""

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """Numbers about the binary weights, logged after every epoch."""
        return {}
