"""The peer: the straight-through estimator as one writes it in plain PyTorch, on the same network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear
from bnnedge.layers.hardtanh import Hardtanh
from bnnedge.train.device import autocast

LEARNING_RATE = 1e-3


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
    """``model`` with every binary layer and every hardtanh that keeps bits replaced, in place; the weights stay."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BinaryConv2d | BinaryLinear):
            twin = _twin(layer)
            twin.load_state_dict(layer.state_dict())
            model.set_submodule(name, twin)
        elif isinstance(layer, Hardtanh):
            model.set_submodule(name, nn.Hardtanh())
    return model


def _twin(layer: BinaryConv2d | BinaryLinear) -> nn.Module:
    bias = layer.bias is not None
    if isinstance(layer, BinaryLinear):
        return PlainLinear(layer.in_features, layer.out_features, bias)
    size: Any = layer.kernel_size
    window: dict[str, Any] = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    return PlainConv2d(layer.in_channels, layer.out_channels, size, **window, bias=bias)


class PlainSteTraining:
    """Adam on everything, latent weights clamped to [-1, 1] after each step."""

    def __init__(self, model: nn.Module, device: torch.device, precision: str = "fp32", compiled: bool = False) -> None:
        """``precision`` fp32 or bf16 (autocast); ``compiled`` by torch.compile, with CUDA graphs on a GPU."""
        self.model = plain_twin(model).to(device).train()
        self._forward = torch.compile(self.model, mode="reduce-overhead") if compiled else self.model
        self._precision, self._device = precision, device
        self.optimizer = torch.optim.Adam(self.model.parameters(), LEARNING_RATE)
        self.latent = [m.weight for m in self.model.modules() if isinstance(m, PlainConv2d | PlainLinear)]

    def step(self, images: Tensor, labels: Tensor) -> float:
        """One step; the loss before it."""
        self.optimizer.zero_grad()
        with autocast(self._device, self._precision):
            loss = F.cross_entropy(self._forward(images), labels)
        value = float(loss.detach())
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            for weight in self.latent:
                weight.clamp_(-1, 1)
        return value
