"""The peer: the straight-through estimator as one writes it in plain PyTorch, on the same network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear
from bnnedge.layers.hardtanh import Hardtanh


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]  # type: ignore[attr-defined]
        return grads[0] * (x.abs() <= 1)


class PlainConv2d(nn.Conv2d):
    """``conv2d(sign(x), sign(w))``."""

    def forward(self, x: Tensor) -> Tensor:
        x, weight = _Sign.apply(x), _Sign.apply(self.weight)  # type: ignore[no-untyped-call]
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class PlainLinear(nn.Linear):
    """``linear(sign(x), sign(w))``."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_Sign.apply(x), _Sign.apply(self.weight), self.bias)  # type: ignore[no-untyped-call]


def plain_twin(model: nn.Module) -> nn.Module:
    """``model`` with every binary layer and every hardtanh that keeps bits replaced, in place."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BinaryConv2d):
            bias = layer.bias is not None
            model.set_submodule(
                name,
                PlainConv2d(
                    layer.in_channels,
                    layer.out_channels,
                    layer.kernel_size,  # type: ignore[arg-type]
                    layer.stride,  # type: ignore[arg-type]
                    layer.padding,  # type: ignore[arg-type]
                    layer.dilation,  # type: ignore[arg-type]
                    layer.groups,
                    bias,
                ),
            )
        elif isinstance(layer, BinaryLinear):
            model.set_submodule(name, PlainLinear(layer.in_features, layer.out_features, layer.bias is not None))
        elif isinstance(layer, Hardtanh):
            model.set_submodule(name, nn.Hardtanh())
    return model


class PlainSteTraining:
    """Adam on everything, latent weights clamped to [-1, 1] after each step."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = plain_twin(model).to(device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3)
        self.latent = [m.weight for m in self.model.modules() if isinstance(m, PlainConv2d | PlainLinear)]

    def step(self, images: Tensor, labels: Tensor) -> float:
        """One step; the loss before it."""
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(images), labels)
        value = float(loss.detach())
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            for weight in self.latent:
                weight.clamp_(-1, 1)
        return value
