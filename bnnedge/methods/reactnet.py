"""ReActNet's training in two steps: first with binary activations, then with binary weights too."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bnnedge.binarization.activation import ActivationBinarizer, ActivationOptions
from bnnedge.binarization.binarizer import Binarizer
from bnnedge.binarization.scale import channel_scale, straight_through
from bnnedge.binarization.sign import sign
from bnnedge.layers.binary_layers import BinaryLayer, binary_layers
from bnnedge.methods.method import Defaults, Method, Phase, check_phases, share_epochs


@dataclass
class ReactnetOptions(ActivationOptions):
    """Options of ``--method reactnet``."""

    surrogate: str = "approx_sign"
    """Surrogate gradient of the activations' sign: identity, clipped_identity, approx_sign, swish_sign or tanh."""
    phases: tuple[int, ...] = (1, 2)
    """Phases to run: 1 with float weights, 2 with binary ones. Phase 2 alone starts from the weights of --init."""
    phase_epochs: tuple[int, ...] = ()
    """Epochs of each phase, adding up to epochs; empty: equal shares."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_phases(self.phases, 2)


class ReactnetBinarizer(ActivationBinarizer):
    """``sign(x)``, and the weight itself in phase 1, ``alpha_o sign(w)`` in phase 2.

    In eval mode alpha_o is the output's scale, and the weight is sign(w) alone.
    """

    phase = 1

    @property
    def has_binary_weight(self) -> bool:
        return not self.training or self.phase == 2

    def binarize_weight(self, weight: Tensor) -> Tensor:
        if not self.training:
            return sign(weight)
        return weight if self.phase == 1 else straight_through(weight)

    def output_scale(self, weight: Tensor) -> Tensor | None:
        return None if self.training else channel_scale(weight)


class Reactnet(Method[ReactnetOptions]):
    """Trains in two steps, each with a new Adam optimizer and a learning rate that falls linearly to 0.

    1. ``y = conv(sign(x), w)`` with float weights w. Weight decay applies to the weights of convolutions alone.
    2. ``y = conv(sign(x), alpha_o sign(w))`` with ``alpha_o = mean abs(w_o)``, from the weights of the first step
       on and without weight decay. Backward it is ``dL/dw = dL/d(alpha_o sign(w)) 1{abs(w) <= 1}``.

    The activations' sign passes the gradient as in Bi-Real Net (``approx_sign``). With ``--teacher`` both steps learn
    from its outputs alone (the distributional loss, eq. 6), else from the labels. The shifts of RSign and RPReLU belong
    to the network. Validation and test binarize the weights in phase 1 too, so their scores are poor until phase 2.

    Differs from the published code: epoch e of E has the learning rate ``lr (1 - e / E)``. There it is
    ``lr (1 - (e + 1) / E)``, with which the last epoch learns nothing. And every weight of phase 1 goes into phase 2.

    Liu, Shen, Savvides, Cheng 2020, "ReActNet", ECCV, arXiv:2003.03488; two steps after Martinez et al. 2020,
    arXiv:2003.11535.
    """

    paper = "Liu et al. 2020, ReActNet, arXiv:2003.03488"
    Options = ReactnetOptions
    defaults = Defaults(optimizer="adam", lr=2.5e-3, weight_decay=1e-5, lr_type="poly")

    @property
    def needs_init(self) -> bool:
        return 1 not in self.options.phases

    def make_binarizer(self, layer: BinaryLayer) -> Binarizer:
        return ReactnetBinarizer(self.options)

    def phases(self, epochs: int) -> tuple[Phase, ...]:
        chosen = self.options.phases
        lengths = share_epochs(epochs, [1] * len(chosen), self.options.phase_epochs)
        kinds = {1: ("binary activations", None), 2: ("binary weights", 0.0)}
        return tuple(Phase(kinds[p][0], n, kinds[p][1]) for p, n in zip(chosen, lengths, strict=True))

    def start_phase(self, model: nn.Module, index: int) -> None:
        for layer in binary_layers(model).values():
            assert isinstance(layer.binarizer, ReactnetBinarizer)
            layer.binarizer.phase = self.options.phases[index]

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.dim() == 4 or "conv" in name
