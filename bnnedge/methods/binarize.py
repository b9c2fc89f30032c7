"""How a user's own module becomes a binary network that a method trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, overload

from torch import nn

from bnnedge.errors import ConfigError
from bnnedge.layers.constant_signs import constant_signs
from bnnedge.layers.conversion import Conversion
from bnnedge.layers.convert import Predicate, convert_with_report, warn_all
from bnnedge.layers.data_flow.run import Example
from bnnedge.methods import METHODS
from bnnedge.methods.method import Method


@overload
def binarize(
    module: nn.Module,
    method: str = ...,
    predicate: Predicate | None = ...,
    *,
    example_inputs: Example | None = ...,
    report: Literal[False] = ...,
    **options: Any,
) -> nn.Module: ...
@overload
def binarize(
    module: nn.Module,
    method: str = ...,
    predicate: Predicate | None = ...,
    *,
    example_inputs: Example | None = ...,
    report: Literal[True],
    **options: Any,
) -> tuple[nn.Module, Conversion]: ...
def binarize(
    module: nn.Module,
    method: str = "ste",
    predicate: Predicate | None = None,
    *,
    example_inputs: Example | None = None,
    report: bool = False,
    **options: Any,
) -> nn.Module | tuple[nn.Module, Conversion]:
    """A copy of ``module`` whose Conv2d and Linear layers train as binary layers under ``method``.

    ``predicate(name, layer) -> bool`` chooses among these layers. By default all become binary but the first and the
    last ones in the flow of data, and those that forward never calls. ``example_inputs``, a tensor, a tuple of them or
    a mapping by the names of forward's arguments, lets a run find the flow where symbolic tracing cannot, and gives
    lazy layers their shapes. Layers that are binary already stay as they are, also those with ``binary_input=False``.
    ``options`` are the method's own.

    Frozen parameters stay frozen, modules in eval mode stay in it, dtypes and devices stay, and the layers keep their
    hooks and attributes. A layer whose class computes something of its own, or whose weight is computed by a
    parametrization, stays float.

    Returns the network, or with ``report=True`` the network and a ``Conversion``, which says what became binary, what
    stays float and why.

    Gives a ``BnnedgeWarning`` for layers that stay float for another reason than their place, for a flow of data that
    is not known, and for binary layers whose input never has a negative value, as behind a ReLU, or only such values.
    Raises ``ConfigError`` for an unknown option, a network that cannot be copied, a chosen layer whose padding is
    not zeros, and if nothing is chosen.

    Train the result with any loop that calls the hooks of ``model.training_method`` as ``bnnedge/methods/method.py``
    says. A method of one phase without an optimizer of its own has three hooks: ``start_epoch(model, epoch, epochs)``
    before an epoch, and ``before_step(model)`` and ``after_step(model)`` around the optimizer's step.
    """
    known = METHODS.load(method).Options.__dataclass_fields__
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(f"method {method} has no option {', '.join(unknown)}; its options: {', '.join(known)}")
    training_method: Method[Any] = METHODS.load(method)(METHODS.load(method).Options(**options))
    model, conversion, flow = convert_with_report(module, predicate, example_inputs)
    training_method.attach(model)
    training_method.start_phase(model, 0)
    model.training_method = training_method  # type: ignore[assignment]
    if flow is not None:
        conversion = replace(conversion, warned=(*conversion.warned, *constant_signs(model, flow)))
    warn_all(conversion.warned)
    return (model, conversion) if report else model
