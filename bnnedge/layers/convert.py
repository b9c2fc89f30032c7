"""How the float layers of a user's own module become binary layers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear

Predicate = Callable[[str, nn.Module], bool]


def convert_to_binary(module: nn.Module, predicate: Predicate | None = None) -> nn.Module:
    """A copy of ``module`` in which Conv2d and Linear layers are binary layers with the same weights.

    ``predicate(name, layer)`` chooses the layers; the default takes all but the first and the last one in the order
    of registration, which stay float as is usual. Layers shared under two names stay shared, and layers that are binary
    already stay as they are, also those with ``binary_input=False``.

    Raises ``ConfigError`` for a chosen layer whose padding is not zeros, and if nothing is chosen.
    """
    model = copy.deepcopy(module)
    if type(model) in (nn.Conv2d, nn.Linear):
        raise ConfigError("binarize a network, not a single layer; use BinaryConv2d or BinaryLinear for that")
    names = [name for name, m in model.named_modules() if type(m) in (nn.Conv2d, nn.Linear)]
    keep = {names[0], names[-1]} if names else set()
    chosen = [n for n in names if (n not in keep if predicate is None else predicate(n, model.get_submodule(n)))]
    if not chosen:
        raise ConfigError(
            f"no layer to binarize: {len(names)} Conv2d and Linear layers found, the first and the last stay float"
            if predicate is None
            else f"no layer to binarize: the predicate chose none of {len(names)} Conv2d and Linear layers"
        )
    twins = {id(layer): _binary_twin(layer) for layer in map(model.get_submodule, chosen)}
    for name, child in list(model.named_modules(remove_duplicate=False)):
        if id(child) in twins:
            model.set_submodule(name, twins[id(child)])
    return model


@torch.no_grad()
def _binary_twin(layer: nn.Module) -> nn.Module:
    twin: BinaryConv2d | BinaryLinear
    if isinstance(layer, nn.Conv2d):
        if layer.padding_mode != "zeros":
            raise ConfigError(f"a binary convolution pads with zeros; found padding_mode={layer.padding_mode!r}")
        twin = BinaryConv2d(
            layer.in_channels,
            layer.out_channels,
            (layer.kernel_size[0], layer.kernel_size[1]),
            (layer.stride[0], layer.stride[1]),
            layer.padding,  # type: ignore[arg-type]
            (layer.dilation[0], layer.dilation[1]),
            layer.groups,
            layer.bias is not None,
        )
    else:
        assert isinstance(layer, nn.Linear)
        twin = BinaryLinear(layer.in_features, layer.out_features, layer.bias is not None)
    twin.to(layer.weight.device, layer.weight.dtype)
    twin.weight.copy_(layer.weight)
    if layer.bias is not None and twin.bias is not None:
        twin.bias.copy_(layer.bias)
    return twin
