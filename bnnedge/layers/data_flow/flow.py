"""How data flows through a network: which layers see its input, and whose results reach its outputs.

A layer with weights is *first* if the network's input reaches it through no other layer with weights, and *last* if its
result reaches an output through none. What lies between, such as norms, activations, pools and sums, passes data on.

The flow is found either by a run on example inputs, in which every operator of PyTorch is seen, or by symbolic
tracing (``torch.fx``) of a copy. Both look at the network in training mode and in eval mode, since some networks have
further outputs in one of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from bnnedge.layers.data_flow.bounds import Bounds, bounds_of_constant, hull

NETWORK_INPUT = ""
"""Stands for the input of the network among names of layers."""


class Value(NamedTuple):
    """What is known of a tensor."""

    bounds: Bounds = Bounds()
    origins: frozenset[str] = frozenset()
    """The layers whose results reach it through no other layer with weights; ``NETWORK_INPUT`` for the input."""
    weight: str | None = None
    """The parameter that it is made of, if it depends on no input."""


@dataclass
class Flow:
    """What is known of a network's layers with weights, by their module paths."""

    how: str
    """How it was found, in words."""
    sees: dict[str, frozenset[str]] = field(default_factory=dict)
    """The origins of all inputs of each layer that was called."""
    bounds: dict[str, list[Bounds]] = field(default_factory=dict)
    """The bounds of each layer's input, for every call."""
    outputs: frozenset[str] = frozenset()
    """The origins of the network's outputs."""
    weights: dict[str, str] = field(default_factory=dict)
    """The parameters that the network multiplies by without calling a layer, and the operations that do so."""

    def call(self, layer: str, inputs: Iterable[Value]) -> Value:
        """Note that ``layer`` is called, and return its result."""
        values = list(inputs)
        seen = frozenset().union(*(v.origins for v in values))
        self.sees[layer] = self.sees.get(layer, frozenset()) | seen
        self.bounds.setdefault(layer, []).append(values[0].bounds if values else Bounds())
        return Value(origins=frozenset({layer}))

    def is_first(self, layer: str) -> bool:
        """Whether the network's input reaches the layer through no other layer with weights."""
        return NETWORK_INPUT in self.sees.get(layer, ())

    def is_last(self, layer: str) -> bool:
        """Whether the layer's result reaches an output through no other layer with weights."""
        return layer in self.outputs

    def input_bounds(self, layer: str) -> Bounds:
        """The bounds of the layer's input over all calls."""
        return hull(self.bounds.get(layer, []))

    def below(self, prefix: str) -> Flow:
        """The same flow where the network is a part of another one, whose paths begin with ``prefix``."""

        def moved(names: Iterable[str]) -> frozenset[str]:
            return frozenset(name and prefix + name for name in names)

        sees = {prefix + name: moved(seen) for name, seen in self.sees.items()}
        bounds = {prefix + name: several for name, several in self.bounds.items()}
        weights = {prefix + name: operation for name, operation in self.weights.items()}
        return Flow(self.how, sees, bounds, moved(self.outputs), weights)

    def join(self, other: Flow) -> Flow:
        """What either of two flows through the same network says."""
        sees = {
            name: self.sees.get(name, frozenset()) | other.sees.get(name, frozenset())
            for name in self.sees | other.sees
        }
        bounds = {name: self.bounds.get(name, []) + other.bounds.get(name, []) for name in self.bounds | other.bounds}
        return Flow(self.how, sees, bounds, self.outputs | other.outputs, self.weights | other.weights)


def has_weights(module: nn.Module) -> bool:
    """Whether ``module`` is a layer that multiplies its input by weights, of a kind that PyTorch defines."""
    kinds = (_ConvNd, nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
    return isinstance(module, kinds) or is_opaque(module) or type(module).__module__.startswith("torch.ao.nn")


def is_opaque(module: nn.Module) -> bool:
    """Whether ``module`` computes with the weights of its children without calling them."""
    return isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer)


def layers_with_weights(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of ``model`` that the flow connects, by path; each once, and none inside of another one."""
    found: dict[str, nn.Module] = {}
    inside: set[int] = set()
    for name, module in model.named_modules():
        if has_weights(module) and id(module) not in inside:
            found[name] = module
            inside |= {id(m) for m in module.modules()}
    return found


WEIGHT_OPERATIONS = {
    *("conv1d", "conv2d", "conv3d", "convolution", "convtranspose1d", "convtranspose2d", "convtranspose3d"),
    *("linear", "bilinear", "matmul", "mm", "addmm", "bmm", "baddbmm", "einsum", "mv", "addmv", "dot"),
}
"""Operations that multiply by a weight, by canonical name."""


SHAPE_OPERATIONS = {
    *("size", "dim", "numel", "ndimension", "getdevice", "isfloatingpoint", "len", "isinstance"),
    *("zeroslike", "oneslike", "fulllike", "emptylike", "randlike", "randnlike"),
    *("newzeros", "newones", "newfull", "newempty", "newemptystrided", "newtensor"),
}
"""Operations whose results depend on the shape of a tensor, not on its values, by canonical name."""


def kind_of(module: nn.Module) -> str:
    """The name of a layer's class."""
    return type(module).__name__


def pass_on(values: Iterable[Value], bounds: Bounds) -> Value:
    """The result of an operation on ``values`` that has no weights."""
    several = list(values)
    origins = frozenset().union(*(v.origins for v in several))
    weights = [v.weight for v in several if v.weight]
    return Value(bounds, origins, weights[0] if weights and not origins else None)


def constant(tensor: torch.Tensor, name: str | None) -> Value:
    """A parameter called ``name``, or a buffer or constant."""
    return Value(bounds_of_constant(tensor, learnt=name is not None and tensor.requires_grad), weight=name)
