"""The deploy form: the one form in which every training method ends, and the only one that exporters know.

Weights are exactly -1 and +1, the scale and the bias are per output channel, the input's binarization is one of the
``InputMode`` values, and a float factor per output pixel (XNOR-Net's K) may come on top. A layer with
``binary_input=False`` has the input mode ``float`` and no K, whatever its method. Sign, convolution and matrix product
are operators of their own, so that ``torch.export`` keeps them whole:

- ``bnnedge::sign(x)``: -1 where x < 0, else +1;
- ``bnnedge::binary_conv2d(x, weight, stride, padding, dilation, groups)``: conv2d with a weight of -1 and +1. For an
  input of -1 and +1 the results are exact integers, since every partial sum is below 2^24;
- ``bnnedge::binary_linear(x, weight)``: ``x @ weight.T``, likewise.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnedge.binarization.binarizer import InputMode
from bnnedge.binarization.sign import sign
from bnnedge.errors import ExportError
from bnnedge.layers.binary_layers import BinaryConv2d, BinaryLinear


@torch.library.custom_op("bnnedge::sign", mutates_args=())
def sign_op(x: Tensor) -> Tensor:
    return sign(x)


@sign_op.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("bnnedge::binary_conv2d", mutates_args=())
def binary_conv2d_op(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    return F.conv2d(x, weight, None, stride, padding, dilation, groups)


@binary_conv2d_op.register_fake
def _(x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int) -> Tensor:
    return F.conv2d(x, weight, None, stride, padding, dilation, groups)


@torch.library.custom_op("bnnedge::binary_linear", mutates_args=())
def binary_linear_op(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight)


@binary_linear_op.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight)


class DeployedLayer(nn.Module):
    """A binary layer after training, without parameters: its buffers are ``weight`` of -1 and +1, ``scale`` [O] and
    ``bias`` [O]."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, layer: BinaryConv2d | BinaryLinear) -> None:
        super().__init__()
        binarizer = layer.binarizer
        weight = binarizer.binarize_weight(layer.weight)
        scale = binarizer.output_scale(layer.weight)
        self.input_mode: InputMode = layer.input_mode
        self.scales_pixels = layer.scales_pixels
        self.register_buffer("weight", weight)
        self.register_buffer("scale", torch.ones(weight.shape[0]) if scale is None else scale.clone())
        self.register_buffer("bias", torch.zeros(weight.shape[0]) if layer.bias is None else layer.bias.clone())

    def preactivation(self, x: Tensor) -> Tensor:
        """The values whose sign is taken; where the input stays float, the values that enter the convolution."""
        if self.input_mode in ("sign", "float"):
            return x
        dims = list(range(1, x.dim()))
        centered = x - x.mean(dim=dims, keepdim=True)
        if self.input_mode == "centered_sign":
            return centered
        count = math.prod(x.shape[1:])
        variance = (centered * centered).mean(dim=dims, keepdim=True) * (count / (count - 1))
        return centered / variance.sqrt()

    def binarize(self, x: Tensor) -> Tensor:
        """The values that enter the convolution, from the layer's input."""
        x = self.preactivation(x)
        return sign_op(x) if self.input_mode in ("sign", "centered_sign") else x

    def integers(self, signs: Tensor) -> Tensor:
        """The convolution's sums before scale and bias; integers if the input is -1 and +1."""
        raise NotImplementedError

    def transform(self, sums: Tensor, x: Tensor) -> Tensor:
        """``sums * scale + bias``, or ``sums * scale * K + bias`` with XNOR-Net's K of the layer's input ``x``."""
        shape = (-1, *[1] * (self.weight.dim() - 2))
        y = sums * self.scale.view(shape)
        if self.scales_pixels:  # The root of the square is exactly abs(x), in operators that the export graph has.
            y = y * self.pixel_scale((x * x).sqrt().mean(1, keepdim=True))
        return y + self.bias.view(shape)

    def pixel_scale(self, magnitude: Tensor) -> Tensor:
        """XNOR-Net's K from abs(x) averaged over the channels, [N, 1, ...]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.transform(self.integers(self.binarize(x)), x)


class DeployedBinaryConv2d(DeployedLayer):
    """Deploy form of ``BinaryConv2d``."""

    box: Tensor

    def __init__(self, layer: BinaryConv2d) -> None:
        super().__init__(layer)
        height, width = layer.kernel_size
        self.register_buffer("box", torch.full((1, 1, height, width), 1 / (height * width)), persistent=False)
        self.stride, self.dilation = list(layer.stride), list(layer.dilation)
        self.padding = [int(p) for p in layer.padding]
        self.groups = layer.groups

    def integers(self, signs: Tensor) -> Tensor:
        sums: Tensor = binary_conv2d_op(signs, self.weight, self.stride, self.padding, self.dilation, self.groups)
        return sums

    def pixel_scale(self, magnitude: Tensor) -> Tensor:
        return F.conv2d(magnitude, self.box, None, self.stride, self.padding, self.dilation)


class DeployedBinaryLinear(DeployedLayer):
    """Deploy form of ``BinaryLinear``."""

    def integers(self, signs: Tensor) -> Tensor:
        sums: Tensor = binary_linear_op(signs, self.weight)
        return sums

    def pixel_scale(self, magnitude: Tensor) -> Tensor:
        return magnitude


@torch.no_grad()
def deploy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` on the CPU, in eval mode, float32, with every binary layer in its deploy form.

    Raises ``ExportError`` for a layer whose method trains no binary weights.
    """
    root = nn.ModuleDict({"model": copy.deepcopy(model).cpu().float().eval()})
    twins: dict[int, DeployedLayer] = {}
    for name, child in list(root.named_modules(remove_duplicate=False)):
        if isinstance(child, BinaryConv2d):
            root.set_submodule(name, twins.setdefault(id(child), DeployedBinaryConv2d(child)))
        elif isinstance(child, BinaryLinear):
            root.set_submodule(name, twins.setdefault(id(child), DeployedBinaryLinear(child)))
    for name, layer in deployed_layers(root["model"]).items():
        if not bool((layer.weight.abs() == 1).all()):
            raise ExportError(
                f"{name}: the weights are not -1 and +1, so there is no deploy form; a network of method float is a "
                "teacher, train its binary twin by another method"
            )
    return root["model"].eval()


def deployed_layers(model: nn.Module) -> dict[str, DeployedLayer]:
    """The binary layers of a deployed model by their module path."""
    return {name: m for name, m in model.named_modules() if isinstance(m, DeployedLayer)}
