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
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

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


# Methods that say what a binary layer computes, and the registers of its hooks.
_COMPUTES = {
    "__call__",
    "_call_impl",
    "_conv_forward",
    "_convolve",
    "_multiply",
    "binarize_input",
    "forward",
    "input_mode",
    "pixel_scale",
    "scales_pixels",
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


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
        self.register_buffer("scale", weight.new_ones(weight.shape[0]) if scale is None else scale.clone())
        self.register_buffer("bias", weight.new_zeros(weight.shape[0]) if layer.bias is None else layer.bias.clone())

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
        self.register_buffer("box", self.weight.new_full((1, 1, height, width), 1 / (height * width)), persistent=False)
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


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside of ``torch.compile``, ``DataParallel``, ``DistributedDataParallel`` and ``AveragedModel``."""
    while True:
        if "_orig_mod" in model._modules:  # of torch.compile, whose class is slow to import
            model = model.get_submodule("_orig_mod")
        elif isinstance(model, nn.DataParallel | DistributedDataParallel | AveragedModel):
            model = model.module
        else:
            return model


def plain_copy(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of ``model`` on the CPU, in eval mode and in ``dtype``, without wrappers (``unwrapped``) at any depth."""
    root = nn.ModuleDict({"model": copy.deepcopy(unwrapped(model)).cpu().to(dtype).eval()})
    for name, child in list(root.named_modules(remove_duplicate=False)):
        if unwrapped(child) is not child:
            root.set_submodule(name, unwrapped(child))
    return root["model"].eval()


@torch.no_grad()
def deploy(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy of ``model`` on the CPU, in eval mode, in ``dtype``, with every binary layer in its deploy form.

    Raises ``ExportError`` for a layer whose method trains no binary weights, and for one with code of the user that the
    deploy form would leave out.
    """
    root = nn.ModuleDict({"model": plain_copy(model, dtype)})
    twins: dict[int, DeployedLayer] = {}
    for name, child in list(root.named_modules(remove_duplicate=False)):
        if isinstance(child, BinaryConv2d | BinaryLinear):
            path = name.removeprefix("model").lstrip(".") or "model"
            _check_nothing_is_lost(path, child)
            _check_finite(path, "latent weight", child.weight)
        if isinstance(child, BinaryConv2d):
            root.set_submodule(name, twins.setdefault(id(child), DeployedBinaryConv2d(child)))
        elif isinstance(child, BinaryLinear):
            root.set_submodule(name, twins.setdefault(id(child), DeployedBinaryLinear(child)))
    for name, layer in deployed_layers(root["model"]).items():
        for what, values in (("scale", layer.scale), ("bias", layer.bias)):
            _check_finite(name, what, values)
        if not bool((layer.weight.abs() == 1).all()):
            raise ExportError(
                f"{name}: the weights are not -1 and +1, so there is no deploy form; a network of method float is a "
                "teacher, train its binary twin by another method"
            )
    return root["model"].eval()


def _check_nothing_is_lost(name: str, layer: BinaryConv2d | BinaryLinear) -> None:
    """Raise ``ExportError`` if the layer does more than its deploy form, which is made of its weights and settings."""
    base = BinaryConv2d if isinstance(layer, BinaryConv2d) else BinaryLinear
    defined = {method for cls in type(layer).__mro__[: type(layer).__mro__.index(base)] for method in vars(cls)}
    own = sorted(_COMPUTES & (defined | vars(layer).keys()))
    hooks = [kind for kind in _HOOKS if getattr(layer, kind, None)]
    if own or hooks:
        what = f"its own {', '.join(own)}" if own else "forward hooks"
        raise ExportError(
            f"{name}: the layer has {what}, which the exported form of a {base.__name__} would leave out; move that "
            "code into a module before or behind the layer"
        )


def _check_finite(name: str, what: str, values: Tensor) -> None:
    """Raise ``ExportError`` for NaN and infinity, which a sign or a clip behind them would hide."""
    if odd := int((~torch.isfinite(values)).sum()):
        raise ExportError(
            f"{name}: the {what} is NaN or infinite in {odd} of {values.numel()} values; train again, from a "
            "checkpoint in which it is finite"
        )


def deployed_layers(model: nn.Module) -> dict[str, DeployedLayer]:
    """The binary layers of a deployed model by their module path."""
    return {name: m for name, m in model.named_modules() if isinstance(m, DeployedLayer)}
