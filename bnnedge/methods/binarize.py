"""How a user's own module becomes a binary network that a method trains."""

from __future__ import annotations

from typing import Any

from torch import nn

from bnnedge.errors import ConfigError
from bnnedge.layers.convert import Predicate, convert_to_binary
from bnnedge.methods import METHODS
from bnnedge.methods.method import Method


def binarize(module: nn.Module, method: str = "ste", predicate: Predicate | None = None, **options: Any) -> nn.Module:
    """A copy of ``module`` whose Conv2d and Linear layers train as binary layers under ``method``.

    ``predicate(name, layer) -> bool`` chooses the layers; by default all but the first and the last become binary.
    Layers that are binary already stay as they are, also those with ``binary_input=False``. ``options`` are the
    method's own.

    Train the result with any loop that calls the hooks of ``model.training_method`` as ``bnnedge/methods/method.py``
    says. A method of one phase without an optimizer of its own has three hooks: ``start_epoch(model, epoch, epochs)``
    before an epoch, and ``before_step(model)`` and ``after_step(model)`` around the optimizer's step.
    """
    known = METHODS.load(method).Options.__dataclass_fields__
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(f"method {method} has no option {', '.join(unknown)}; its options: {', '.join(known)}")
    training_method: Method[Any] = METHODS.load(method)(METHODS.load(method).Options(**options))
    model = convert_to_binary(module, predicate)
    training_method.attach(model)
    training_method.start_phase(model, 0)
    model.training_method = training_method  # type: ignore[assignment]
    return model
