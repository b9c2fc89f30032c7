"""The method float, which binarizes nothing: it trains the float32 twin of a network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bnnedge.binarization.binarizer import Binarizer
from bnnedge.layers.binary_layers import BinaryLayer
from bnnedge.methods.method import Defaults, Method


@dataclass
class Float32Options:
    """``--method float`` has no options."""


class Float32Binarizer(Binarizer):
    """Leaves the input and the weight as they are."""

    input_mode = "float"

    def binarize_input(self, x: Tensor) -> Tensor:
        return x

    @property
    def has_binary_weight(self) -> bool:
        return False

    def binarize_weight(self, weight: Tensor) -> Tensor:
        return weight


class Float32(Method[Float32Options]):
    """Plain training of the same network with float32 weights and activations: ``y = conv(x, w)``.

    The result has no deploy form. It serves as a baseline, as a ``--teacher``, and as a start for ``--init``.
    """

    paper = "none; the float32 twin of the network"
    Options = Float32Options
    defaults = Defaults(optimizer="adam", lr=1e-2)
    trains_bits = False

    def make_binarizer(self, layer: BinaryLayer) -> Binarizer:
        return Float32Binarizer()
