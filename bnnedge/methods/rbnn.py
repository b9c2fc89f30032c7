"""RBNN: binary weights of a rotated latent weight, so that the angle between the two is small."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bnnedge.binarization.binarizer import Binarizer
from bnnedge.binarization.sign import sign
from bnnedge.binarization.surrogate import error_decay, error_decay_multiplier
from bnnedge.errors import ConfigError
from bnnedge.layers.binary_layers import BinaryLayer, binary_layers
from bnnedge.methods.method import Method, Recipe


@dataclass
class RbnnOptions:
    """Options of ``--method rbnn``."""

    rotation_update: int = 1
    """The rotations are learnt anew before the first step of every epoch divisible by this number."""
    rotation_gradient: Literal["paper", "authors"] = "paper"
    """paper: the weight's gradient flows through the rotation; authors: it is cut there, as in the published code."""
    tmin: float = 1e-2
    """The surrogate's t at the first epoch."""
    tmax: float = 1e1
    """The surrogate's t that the last epoch comes close to."""
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
    """(a, b) with a b = n and a the largest divisor of n not above sqrt(n)."""
    a = next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0)
    return a, n // a


def surrogate_schedule(epoch: int, epochs: int, tmin: float, tmax: float) -> tuple[float, float]:
    """(t, k) of epoch ``epoch`` of ``epochs``: t grows from tmin towards tmax on a log scale, k = max(1/t, 1)."""
    low, high = math.log10(tmin), math.log10(tmax)
    t = 10 ** (low + (high - low) * epoch / epochs)
    return t, max(1 / t, 1.0)


def standardize(x: Tensor) -> Tensor:
    """``(x - mean) / std`` of each row of dimension 0 over all its other elements, unbiased std.

    A constant row has no std: it becomes 0, with zero gradient, where the plain quotient would be NaN.
    """
    return _Standardize.apply(x, None)  # type: ignore[no-any-return, no-untyped-call]


def standardized_sign(x: Tensor, t: float) -> Tensor:
    """``sign(standardize(x))`` with ``error_decay``'s gradient for k = 1 at the standardized values."""
    return _Standardize.apply(x, t)  # type: ignore[no-any-return, no-untyped-call]


class _Standardize(torch.autograd.Function):
    """Keeps ``x`` alone for the backward pass and computes z = (x - mean) / std anew, n elements in a row:

    ``dL/dx = (g - mean(g) - z sum(g z) / (n - 1)) / std``, with ``g = dL/dz``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, t: float | None) -> Tensor:
        dims = tuple(range(1, x.dim()))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        std, mean = torch.std_mean(wide, dim=dims, keepdim=True)
        ctx.save_for_backward(x, mean, std)
        ctx.t = t
        z = (wide - mean).div_(std.clamp_min(torch.finfo(wide.dtype).tiny)).to(x.dtype)
        return z if t is None else sign(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x, mean, std = ctx.saved_tensors
        dims = tuple(range(1, x.dim()))
        inverse = torch.where(std > 0, 1 / std, 0)
        z = (x - mean).mul_(inverse)
        g = grads[0] if ctx.t is None else grads[0] * error_decay_multiplier(z, ctx.t, 1.0)
        along = (g * z).sum(dims, keepdim=True) / (x[0].numel() - 1)
        return (g - g.mean(dims, keepdim=True)).sub_(z.mul_(along)).mul_(inverse).to(x.dtype), None


class RbnnBinarizer(Binarizer):
    """Per layer: output scale ``alpha`` [O], rotation angle ``beta`` [O], orthogonal ``r1`` [a, a] and ``r2`` [b, b].

    The weight [O, N] seen as O matrices of a x b is standardized to X and binarized after a partial rotation:
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
        self.t, self.k = surrogate_schedule(0, 1, options.tmin, options.tmax)
        channels, fan_in = layer.weight.shape[0], layer.weight[0].numel()
        if fan_in < 2:
            raise ConfigError(f"rbnn standardizes each filter and so needs at least 2 weights in it, got {fan_in}")
        # The published code reads alpha off the framework's default initialization, before the network's own one.
        default = nn.init.kaiming_uniform_(torch.empty_like(layer.weight), a=math.sqrt(5))
        self.alpha = nn.Parameter(default.flatten(1).abs().mean(1))
        self.beta = nn.Parameter(torch.full((channels,), math.pi / 2))
        self.a, self.b = kronecker_factors(fan_in)
        self.register_buffer("r1", nn.init.orthogonal_(torch.empty(self.a, self.a)))
        self.register_buffer("r2", nn.init.orthogonal_(torch.empty(self.b, self.b)))

    def binarize_input(self, x: Tensor) -> Tensor:
        return standardize(x) if self.input_mode == "standardized" else standardized_sign(x, max(self.t, 1.0))

    def binarize_weight(self, weight: Tensor) -> Tensor:
        return error_decay(self.rotated(weight), t=self.t, k=self.k)

    def rotated(self, weight: Tensor) -> Tensor:
        """w3 above, in the shape of ``weight``."""
        w2 = standardize(weight)
        x = w2.reshape(-1, self.a, self.b)
        with torch.autocast(weight.device.type, enabled=False):  # signs of bf16 products are not those of evaluation
            rotated = (self.r1.T @ x @ self.r2).view(w2.shape)
        if self.options.rotation_gradient == "authors":
            rotated = rotated.detach()
        strength = self.beta.sin().abs().view(-1, *[1] * (weight.dim() - 1))
        return w2 + strength * (rotated - w2)

    def output_scale(self, weight: Tensor) -> Tensor:
        return self.alpha

    @torch.no_grad()
    def learn_rotation(self, weight: Tensor, sweeps: int = 3) -> None:
        """Alternate ``sweeps`` times over B, r1, r2 so that ``sum |r1^T X r2|`` never falls; in place."""
        x = standardize(weight).reshape(-1, self.a, self.b)
        for _ in range(sweeps):
            b = sign(self.r1.T @ x @ self.r2)
            u, _, vh = torch.linalg.svd((b @ self.r2.T @ x.mT).sum(0))
            self.r1.copy_(vh.T @ u.T)
            u, _, vh = torch.linalg.svd((x.mT @ self.r1 @ b).sum(0))
            self.r2.copy_(u @ vh)


class Rbnn(Method[RbnnOptions]):
    """Rotated binary network.

    Forward of a layer with weight w [O, ...] and input x [N, ...]:

    1. ``X = (w - mean_o) / std_o`` per output channel, ``z = (x - mean_n) / std_n`` per sample, unbiased std;
    2. ``w3 = X + |sin beta_o| (r1^T X r2 - X)`` (the adjustable rotated weight vector);
    3. ``y = alpha_o conv(sign(z), sign(w3))``.

    Backward: both signs use ``max(k (sqrt(2) t - t^2 |v|), 0)``, t and k from ``surrogate_schedule``; activations
    with k = 1 and t at least 1. With ``g = dL/dw3``,

    - ``rotation_gradient="paper"``:   ``dL/dX = (1 - |sin beta|) g + |sin beta| r1 g r2^T``;
    - ``rotation_gradient="authors"``: ``dL/dX = (1 - |sin beta|) g``, what the published code computes. At the start
      ``|sin beta| = 1``, so weights get no gradient until weight decay has moved beta away from pi/2.

    Rotation (alternating optimization): ``max sum_o tr(B_o^T r1^T X_o r2)`` over B in {-1,+1} and orthogonal r1,
    r2, by three alternating sweeps: ``B = sign(r1^T X r2)``; with ``sum_o B r2^T X^T = U S V^T``, ``r1 = V U^T``; with
    ``sum_o X^T r1 B = U S V^T``, ``r2 = U V^T``. Done between steps and in place, so that every replica of a
    distributed run sees it.

    Weight decay applies to alpha and beta too, as published.

    Lin et al. 2020, "Rotated Binary Neural Network", NeurIPS, arXiv:2009.13055.
    """

    paper = "Lin et al. 2020, Rotated Binary Neural Network, arXiv:2009.13055"
    Options = RbnnOptions
    recipe = Recipe(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)

    def make_binarizer(self, layer: BinaryLayer) -> Binarizer:
        return RbnnBinarizer(layer, self.options)

    def averages(self, name: str) -> bool:
        """All but the rotations, of which an average is none."""
        return not name.endswith((".r1", ".r2"))

    def start_epoch(self, model: nn.Module, epoch: int, epochs: int) -> None:
        t, k = surrogate_schedule(epoch, epochs, self.options.tmin, self.options.tmax)
        for layer in binary_layers(model).values():
            binarizer = layer.binarizer
            assert isinstance(binarizer, RbnnBinarizer)
            binarizer.t, binarizer.k = t, k
            if epoch % self.options.rotation_update == 0:
                binarizer.learn_rotation(layer.weight)

    @torch.no_grad()
    def layer_metrics(self, layer: BinaryLayer) -> dict[str, float]:
        """Adds the angle in degrees between the rotated latent weight and its sign."""
        w3 = layer.binarizer.rotated(layer.weight).flatten()  # type: ignore[operator]
        cosine = w3.abs().sum() / (w3.norm() * math.sqrt(w3.numel()))
        return super().layer_metrics(layer) | {"rotation_angle_deg": math.degrees(math.acos(min(float(cosine), 1.0)))}
