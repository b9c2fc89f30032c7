"""How the float layers of a user's own module become binary layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection

import torch
from torch import nn

from bnnedge.errors import BnnedgeWarning, ConfigError
from bnnedge.layers.binary_layers import binary_layers
from bnnedge.layers.binary_twin import binary_twin, why_not_binary
from bnnedge.layers.conversion import Conversion, KeptLayer
from bnnedge.layers.data_flow.find import copied, find_flow
from bnnedge.layers.data_flow.flow import Flow, kind_of, layers_with_weights
from bnnedge.layers.data_flow.run import Example, call_with

Predicate = Callable[[str, nn.Module], bool]
FIRST = "it sees the network's input"
LAST = "its result reaches an output"
NOT_CHOSEN = "the predicate did not choose it"
NOT_ASKED = "a predicate chooses among Conv2d and Linear layers"
USUAL = (FIRST, LAST, NOT_CHOSEN, NOT_ASKED)
NEVER_CALLED = "forward never calls it"


def convert_to_binary(
    module: nn.Module, predicate: Predicate | None = None, example_inputs: Example | None = None
) -> nn.Module:
    """A copy of ``module`` in which Conv2d and Linear layers are binary layers with the same weights.

    ``predicate(name, layer)`` chooses among the Conv2d and Linear layers. The default takes all but the first and the
    last ones, which stay float as is usual, and those that forward never calls. First are the layers that the
    network's input reaches through no other layer with weights, last are those whose results reach an output so; see
    ``bnnedge.layers.data_flow.flow``. They are found by a run on ``example_inputs``, or without them by symbolic
    tracing; if neither works, by the order of registration, and a warning says so.

    Layers shared under two names stay shared, and layers that are binary already stay as they are, also those with
    ``binary_input=False``. Parameters, which may be frozen or shared, are taken over themselves, and so are the mode of
    each layer, its hooks and its other attributes.

    One ``BnnedgeWarning`` names all layers that stay float for another reason than their place. Raises
    ``ConfigError`` for a chosen layer whose padding is not zeros, if the network cannot be copied, and if nothing is
    chosen.
    """
    model, conversion, _ = convert_with_report(module, predicate, example_inputs)
    warn_all(conversion.warned)
    return model


def convert_again(module: nn.Module, layers: Collection[str] | None) -> nn.Module:
    """A copy of ``module`` in which ``layers`` are binary, as a run has trained them.

    None stands for a run of bnnedge 0.1, which took all layers of type Conv2d and Linear but the first and the last one
    in the order of registration.
    """
    if layers is None:
        layers = [name for name, m in module.named_modules() if type(m) in (nn.Conv2d, nn.Linear)][1:-1]
    return convert_with_report(module, lambda name, _: name in layers, follow=False)[0]


def warn_all(texts: Collection[str]) -> None:
    """Give each text as a warning at the line that called the package."""
    for text in texts:
        warnings.warn(text, BnnedgeWarning, stacklevel=3)


def convert_with_report(
    module: nn.Module,
    predicate: Predicate | None = None,
    example_inputs: Example | None = None,
    *,
    follow: bool = True,
) -> tuple[nn.Module, Conversion, Flow | None]:
    """``convert_to_binary`` without its warnings, what it took, and the flow of data if that was found.

    With a predicate the flow decides nothing; ``follow=False`` then leaves it out.
    """
    if type(module) in (nn.Conv2d, nn.Linear):
        raise ConfigError("binarize a network, not a single layer; use BinaryConv2d or BinaryLinear for that")
    model = copied(module)
    _initialize_lazy_layers(model, example_inputs)
    flow, failures = find_flow(model, example_inputs) if follow else (None, [])
    already = tuple(binary_layers(model))
    reasons = _reasons(model, flow, predicate)
    chosen = [name for name, reason in reasons.items() if reason is None]
    if not chosen and not already:
        found = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in layers_with_weights(model).values())
        raise ConfigError(_nothing_chosen(found, predicate, reasons))
    kept = _kept(model, reasons, flow)
    _replace(model, chosen)
    chosen_by = "a predicate" if predicate is not None else "the order of registration" if flow is None else flow.how
    warned = _warnings(kept, failures if predicate is None else [], flow is None)
    return model, Conversion(tuple(chosen), already, kept, warned, chosen_by), flow


@torch.no_grad()
def _initialize_lazy_layers(model: nn.Module, example: Example | None) -> None:
    """Give lazy layers their shapes by a run in eval mode, which changes nothing else."""
    if example is None or not any(isinstance(m, nn.modules.lazy.LazyModuleMixin) for m in model.modules()):
        return
    modes = {m: m.training for m in model.modules()}
    call_with(model.eval(), example)
    for module, training in modes.items():
        module.training = training


def _reasons(model: nn.Module, flow: Flow | None, predicate: Predicate | None) -> dict[str, str | None]:
    """Why each layer with weights stays float; None for those that become binary."""
    already = binary_layers(model)
    layers = {name: m for name, m in layers_with_weights(model).items() if name not in already}
    candidates = [name for name, m in layers.items() if isinstance(m, nn.Conv2d | nn.Linear)]
    ends = {candidates[0], candidates[-1]} if candidates else set()
    found: dict[str, str | None] = {}
    for name, layer in layers.items():
        if predicate is not None:
            asked = name in candidates
            chosen = asked and predicate(name, layer)
            found[name] = why_not_binary(layer) if chosen else NOT_CHOSEN if asked else NOT_ASKED
        elif flow is not None:
            found[name] = _place(name, flow) or why_not_binary(layer)
        elif name in ends:
            found[name] = FIRST if name == candidates[0] else LAST
        else:
            found[name] = why_not_binary(layer)
    return found


def _place(name: str, flow: Flow) -> str | None:
    """Why the place of a layer in the flow of data keeps it float."""
    if f"{name}.weight" in flow.weights:
        return "forward multiplies by its weight without calling it"
    if name not in flow.sees:
        return NEVER_CALLED
    return FIRST if flow.is_first(name) else LAST if flow.is_last(name) else None


def _kept(model: nn.Module, reasons: dict[str, str | None], flow: Flow | None) -> tuple[KeptLayer, ...]:
    layers = [KeptLayer(n, kind_of(model.get_submodule(n)), r) for n, r in reasons.items() if r is not None]
    weights = {} if flow is None else flow.weights
    owned = {f"{name}.weight" for name in reasons}
    loose = [
        KeptLayer(name, operation, "forward multiplies by this parameter without a layer")
        for name, operation in weights.items()
        if name not in owned
    ]
    return (*layers, *loose)


def _nothing_chosen(found: int, predicate: Predicate | None, reasons: dict[str, str | None]) -> str:
    if predicate is not None and all(reason in USUAL for reason in reasons.values()):
        return f"no layer to binarize: the predicate chose none of {found} Conv2d and Linear layers"
    others = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason not in USUAL)
    text = f"no layer to binarize: {found} Conv2d and Linear layers found, the first and the last stay float"
    return f"{text}; {others}" if others else text


def _replace(model: nn.Module, chosen: list[str]) -> None:
    twins = {id(layer): binary_twin(layer) for layer in map(model.get_submodule, chosen)}
    for name, child in list(model.named_modules(remove_duplicate=False)):
        if id(child) in twins:
            model.set_submodule(name, twins[id(child)])


def _warnings(kept: tuple[KeptLayer, ...], failures: list[str], by_registration: bool) -> tuple[str, ...]:
    found = []
    if failures and by_registration:
        found.append(
            f"the flow of data is not known ({'; '.join(failures)}), so the first and the last layer in the order of "
            "registration stay float; pass example_inputs=, inputs that forward takes, or choose by predicate="
        )
    elif failures:
        found.append(f"{'; '.join(failures)}; the first and the last layers are those of a symbolic trace instead")
    odd = [layer for layer in kept if layer.reason not in USUAL]
    if odd:
        named = "; ".join(f"{layer.name} ({layer.kind}): {layer.reason}" for layer in odd)
        found.append(f"these layers stay float, and not because they are the first or the last: {named}")
    return tuple(found)
