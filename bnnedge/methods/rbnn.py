"""RBNN: binary weights from rotated latent weights, so that the angle between the two is small."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bnnedge.binarization.binarizer import Binarizer
from bnnedge.binarization.row_blocks import row_blocks
from bnnedge.binarization.sign import sign
from bnnedge.binarization.standardize import (
    centered_rows,
    column,
    row_dots,
    row_mean,
    standardize,
    standardized_sign,
    through_standardization,
)
from bnnedge.binarization.surrogate import error_decay_multiplier
from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryLayer, binary_layers
from bnnedge.methods.method import Defaults, Method


@dataclass
class RbnnOptions:
    """Options of ``--method rbnn``."""

    rotation_update: int = 1
    """Before the first step of every epoch that is divisible by this number, the rotations are learnt anew."""
    rotation_gradient: Literal["paper", "authors"] = "paper"
    """paper: the weight's gradient flows through the rotation; authors: it does not, as in the published code."""
    tmin: float = 1e-2
    """The surrogate's t in the first epoch."""
    tmax: float = 1e1
    """The value that the surrogate's t approaches in the last epoch."""
    a32: bool = False
    """Leave activations in float, standardized per sample (W1A32)."""

    def __post_init__(self) -> None:
        if self.rotation_update < 1:
            raise ConfigError(f"rotation_update must be at least 1 epoch, got {self.rotation_update}")
        if not 0 < self.tmin <= self.tmax:
            raise ConfigError(f"0 < tmin <= tmax is needed, got tmin={self.tmin} and tmax={self.tmax}")
        if self.rotation_gradient not in ("paper", "authors"):
            raise ConfigError(f"rotation_gradient must be paper or authors, got {self.rotation_gradient!r}")


def kronecker_factors(n: int) -> tuple[int, int]:
    """(a, b) with a b = n, where a is the largest divisor of n that is not above sqrt(n)."""
    a = next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0)
    return a, n // a


def surrogate_schedule(epoch: int, epochs: int, tmin: float, tmax: float) -> tuple[float, float]:
    """(t, k) in epoch ``epoch`` of ``epochs``: t grows from tmin towards tmax on a log scale, and k = max(1/t, 1)."""
    low, high = math.log10(tmin), math.log10(tmax)
    t = 10 ** (low + (high - low) * epoch / epochs)
    return t, max(1 / t, 1.0)


class _RotatedSign(torch.autograd.Function):
    """``alpha_o sign(w3)`` with the gradients that ``Rbnn`` gives.

    It keeps w3 for the backward pass, which computes X again from the weight. Both are computed without their factor
    ``1 / std``, on which the sign does not depend.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, alpha: Tensor, beta: Tensor, r1: Tensor, r2: Tensor, t: float, k: float, whole: bool
    ) -> Tensor:
        mean, strength, scale = row_mean(weight), _strength(beta, weight), column(alpha, weight)
        w3, found = torch.empty_like(weight), torch.empty_like(weight)
        for rows in row_blocks(weight):
            w3[rows] = _rotate_partly(weight[rows] - mean[rows], strength[rows], r1, r2)
            found[rows] = sign(w3[rows]).mul_(scale[rows])
        ctx.save_for_backward(weight, mean, w3, alpha, beta, r1, r2)
        ctx.t, ctx.k, ctx.whole = t, k, whole
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, mean, w3, alpha, beta, r1, r2 = ctx.saved_tensors
        strength, scale = _strength(beta, weight), column(alpha, weight)
        weight_grad, alpha_grad, strength_grad = map(torch.empty_like, (weight, alpha, beta))
        for rows in row_blocks(weight):
            x, inverse = centered_rows(weight[rows], mean[rows])
            alpha_grad[rows] = sign(w3[rows]).mul_(grads[0][rows]).flatten(1).sum(1)
            factor = inverse * scale[rows]  # All that follows is linear in g, so this factor can come last.
            g = error_decay_multiplier(w3[rows], ctx.t, ctx.k, inverse).mul_(grads[0][rows])
            # The scalar product of g with r1^T X r2 - X is that of X with r1 g r2^T - g.
            turned = _rotate(g, r1.T, r2.T).sub_(g)
            strength_grad[rows] = row_dots(turned, x) * factor.flatten()
            g = g.addcmul_(turned, strength[rows]) if ctx.whole else g.mul_(1 - strength[rows])
            weight_grad[rows] = through_standardization(g, x, inverse, factor)
        beta_grad = strength_grad * beta.cos() * beta.sin().sgn()
        return weight_grad, alpha_grad, beta_grad, None, None, None, None, None


def _rotate(x: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
    """``r1^T X r2`` in the shape of ``x``, for each row of ``x`` seen as a matrix X [a, b]."""
    a, b = len(r1), len(r2)
    # Autocast is off: in bf16 some signs would differ from those of the evaluation.
    with torch.autocast(x.device.type, enabled=False):
        return (r1.T @ (x.reshape(-1, b) @ r2).view(-1, a, b)).view(x.shape)


def _rotate_partly(x: Tensor, strength: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
    """``X + strength (r1^T X r2 - X)`` in the shape of ``x``."""
    return torch.lerp(x, _rotate(x, r1, r2), strength)


def _strength(beta: Tensor, like: Tensor) -> Tensor:
    """``|sin beta|`` [O] in a shape that multiplies the rows of ``like``."""
    return column(beta.sin().abs_(), like)


class RbnnBinarizer(Binarizer):
    """One layer's output scale ``alpha`` [O], rotation angle ``beta`` [O], orthogonal ``r1`` [a, a] and ``r2`` [b, b].

    The weight is seen as O matrices of a x b, standardized to X, partly rotated and then binarized:
    ``w3 = X + |sin beta| (r1^T X r2 - X)``, ``w_b = sign(w3)``.
    """

    alpha: nn.Parameter
    beta: nn.Parameter
    r1: Tensor
    r2: Tensor

    def __init__(self, layer: BinaryLayer, options: RbnnOptions) -> None:
        super().__init__()
        self.input_mode = "standardized" if options.a32 else "centered_sign"
        self.options = options
        self.set_surrogate(*surrogate_schedule(0, 1, options.tmin, options.tmax))
        channels, fan_in = layer.weight.shape[0], layer.weight[0].numel()
        if fan_in < 2:
            raise ConfigError(f"rbnn standardizes each filter and so needs at least 2 weights in it, got {fan_in}")
        # The published code takes alpha from PyTorch's default initialization, before the network's own one.
        default = nn.init.kaiming_uniform_(torch.empty_like(layer.weight), a=math.sqrt(5))
        self.alpha = nn.Parameter(default.flatten(1).abs().mean(1))
        self.beta = nn.Parameter(torch.full((channels,), math.pi / 2))
        self.a, self.b = kronecker_factors(fan_in)
        self.register_buffer("r1", nn.init.orthogonal_(torch.empty(self.a, self.a)))
        self.register_buffer("r2", nn.init.orthogonal_(torch.empty(self.b, self.b)))

    def set_surrogate(self, t: float, k: float) -> None:
        """Set t and k of the weights' sign. That of the activations has k = 1 and t at least 1."""
        self.t, self.k, self.input_t = t, k, max(t, 1.0)

    def binarize_input(self, x: Tensor) -> Tensor:
        return standardize(x) if self.input_mode == "standardized" else standardized_sign(x, self.input_t)

    def binarize_weight(self, weight: Tensor) -> Tensor:
        if not self.training:
            return sign(self._rotated(weight.detach() - row_mean(weight.detach())))
        whole = self.options.rotation_gradient == "paper"
        return _RotatedSign.apply(  # type: ignore[no-any-return, no-untyped-call]
            weight, self.alpha, self.beta, self.r1, self.r2, self.t, self.k, whole
        )

    @torch.no_grad()
    def rotated(self, weight: Tensor) -> Tensor:
        """w3 above, in the shape of ``weight``."""
        return self._rotated(standardize(weight))

    def _rotated(self, x: Tensor) -> Tensor:
        return _rotate_partly(x, _strength(self.beta.detach(), x), self.r1, self.r2)

    def output_scale(self, weight: Tensor) -> Tensor | None:
        """``alpha`` in eval mode; in training ``binarize_weight`` has multiplied by it, and gives its gradient."""
        return None if self.training else self.alpha

    @torch.no_grad()
    def learn_rotation(self, weight: Tensor, sweeps: int = 3) -> None:
        """Update B, r1 and r2 in turn, ``sweeps`` times and in place; ``sum |r1^T X r2|`` never falls."""
        x = standardize(weight).reshape(-1, self.a, self.b)
        for _ in range(sweeps):
            b = sign(_rotate(x, self.r1, self.r2))
            u, _, vh = torch.linalg.svd((b @ self.r2.T @ x.mT).sum(0))
            self.r1.copy_(vh.T @ u.T)
            u, _, vh = torch.linalg.svd((x.mT @ self.r1 @ b).sum(0))
            self.r2.copy_(u @ vh)


class Rbnn(Method[RbnnOptions]):
    """Rotates latent weights before their sign is taken, which brings them closer to the binary weights.

    Forward, for a layer with weight w [O, ...] and input x [N, ...]:

    1. ``X = (w - mean_o) / std_o`` for each output channel and ``z = (x - mean_n) / std_n`` for each sample, with the
       unbiased standard deviation;
    2. ``w3 = X + |sin beta_o| (r1^T X r2 - X)`` (the adjustable rotated weight vector);
    3. ``y = alpha_o conv(sign(z), sign(w3))``.

    Backward: the gradient of both signs is multiplied by ``max(k (sqrt(2) t - t^2 |v|), 0)`` with t and k from
    ``surrogate_schedule``; for activations k is 1 and t at least 1. With ``g = dL/dw3``,

    - ``rotation_gradient="paper"``:   ``dL/dX = (1 - |sin beta|) g + |sin beta| r1 g r2^T``;
    - ``rotation_gradient="authors"``: ``dL/dX = (1 - |sin beta|) g``, as the published code computes it. At the start
      ``|sin beta|`` is 1, so weights get no gradient until weight decay has moved beta away from pi/2.

    The rotations maximize ``sum_o tr(B_o^T r1^T X_o r2)`` over B of -1 and +1 and orthogonal r1 and r2. Three sweeps
    of alternating optimization do so, each with the steps

    1. ``B = sign(r1^T X r2)``;
    2. ``r1 = V U^T`` with ``sum_o B r2^T X^T = U S V^T``;
    3. ``r2 = U V^T`` with ``sum_o X^T r1 B = U S V^T``.

    This happens between training steps and in place, so that all replicas of a distributed run use the same rotations.
    Weight decay applies to alpha and beta too, as published.

    A layer with ``binary_input=False`` takes its input as it is: neither step 1's z nor its sign is computed.

    Differs from the published code: the weight's gradient, as said above. The rotations are learnt outside the forward
    pass; there it is in the first one of an epoch, where several GPUs lose them. A constant sample or filter becomes 0;
    there it becomes NaN. After ``--warm-up 5`` the cosine falls from epoch 5 on to 0; there it falls from epoch 8 on
    and not quite to 0.

    Lin et al. 2020, "Rotated Binary Neural Network", NeurIPS, arXiv:2009.13055.
    """

    paper = "Lin et al. 2020, Rotated Binary Neural Network, arXiv:2009.13055"
    Options = RbnnOptions
    defaults = Defaults(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)

    def make_binarizer(self, layer: BinaryLayer) -> Binarizer:
        return RbnnBinarizer(layer, self.options)

    def averages(self, name: str) -> bool:
        """All entries are averaged but the rotations: an average of orthogonal matrices is not orthogonal."""
        return not name.endswith((".r1", ".r2"))

    def start_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
        t, k = surrogate_schedule(epoch, epochs, self.options.tmin, self.options.tmax)
        for layer in binary_layers(model).values():
            binarizer = layer.binarizer
            assert isinstance(binarizer, RbnnBinarizer)
            binarizer.set_surrogate(t, k)
            if epoch % self.options.rotation_update == 0:
                binarizer.learn_rotation(layer.weight)

    @torch.no_grad()
    def layer_metrics(self, layer: BinaryLayer) -> dict[str, float]:
        """The usual numbers, and the angle in degrees between the rotated latent weight and its sign."""
        w3 = layer.binarizer.rotated(layer.weight).flatten()  # type: ignore[operator]
        cosine = w3.abs().sum() / (w3.norm() * math.sqrt(w3.numel()))
        return super().layer_metrics(layer) | {"rotation_angle_deg": math.degrees(math.acos(min(float(cosine), 1.0)))}
