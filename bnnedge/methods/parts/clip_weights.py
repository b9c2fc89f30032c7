"""Keeping the latent weights of all binary layers within a bound."""

from __future__ import annotations

import torch
from torch import nn

from bnnedge.layers.binary_layers import binary_layers


@torch.no_grad()
def clip_weights(model: nn.Module, bound: float) -> None:
    """``w <- clamp(w, -bound, bound)`` for the weights of all binary layers of ``model`` that are not frozen.

    A bound of 0 does nothing.
    """
    if bound > 0:
        for layer in binary_layers(model).values():
            if layer.weight.requires_grad:
                layer.weight.clamp_(-bound, bound)
