"""The warning of the first epoch: a binary layer whose input has the same sign everywhere learns nothing."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from bnnedge.data.dataset import Dataset
from bnnedge.errors import BnnedgeWarning
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear, binary_layers
from bnnedge.layers.constant_signs import constant_signs_text
from bnnedge.train.rng import rng_state, set_rng_state

IMAGES = 64
"""Training images whose signs are looked at."""


@torch.no_grad()
def warn_of_constant_signs(model: nn.Module, dataset: Dataset, device: torch.device) -> None:
    """Warn of every binary layer all of whose input signs are equal on some training images, in eval mode.

    Weights, statistics and random generators stay as they are.
    """
    ranges: dict[str, list[float]] = {}
    handles = []
    for name, layer in binary_layers(model).items():
        if layer.input_mode in ("sign", "centered_sign"):

            def look(module: nn.Module, x: tuple[Any, ...], name: str = name) -> None:
                assert isinstance(module, BinaryConv2d | BinaryLinear)
                signs: Tensor = module.binarize_input(x[0])
                ranges.setdefault(name, []).extend([float(signs.min()), float(signs.max())])

            handles.append(layer.register_forward_pre_hook(look))
    before, training = rng_state(), model.training
    try:
        inputs, _ = dataset.samples("train", torch.arange(min(IMAGES, dataset.size("train"))))
        model.eval()(inputs.to(device))
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
        set_rng_state(before)
    for name, found in ranges.items():
        if min(found) == max(found):
            text = constant_signs_text(name, found[0], f"on {len(inputs)} training images")
            warnings.warn(text, BnnedgeWarning, stacklevel=2)
