"""The binary convolution and the binary dense layer: geometry and weight; a ``Binarizer`` does the rest."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnedge.binarization.binarizer import Binarizer
from bnnedge.errors import ConfigError
from bnnedge.kernels.gpu.select import KERNELS, Kernels
from bnnedge.layers.packed_ops import packed_conv2d, packed_linear

_GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def input_clip(layer: BinaryLayer, x: Tensor) -> float | None:
    """The clip of the operators of ``packed_ops`` if they compute this layer, None if plain PyTorch does.

    They do not where the binarizer has a rule of its own, where the user asked for plain PyTorch, and on a CPU where no
    gradient is wanted, as there they only save memory between forward and backward.
    """
    if layer.kernels == "torch":
        return None
    kinds = {"cuda": x.dtype in _GPU_DTYPES, "cpu": torch.is_grad_enabled() or layer.kernels == "triton"}
    return layer.binarizer.input_clip if kinds.get(x.device.type, False) and x.numel() else None


def output_dtype(x: Tensor) -> torch.dtype:
    """What a convolution of ``x`` returns: autocast's type under autocast."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class BinaryConv2d(nn.Conv2d):
    """``conv2d(binarize(x), binarize(w)) * scale + bias``, arguments as in ``nn.Conv2d``.

    Zero padding is added after the sign, so that taps outside the image contribute nothing. ``binarizer`` is set by
    the training method; without one the layer is a plain straight-through binary convolution.
    """

    kernels: Kernels = "auto"
    """See ``use_kernels``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.binarizer = Binarizer()

    def forward(self, x: Tensor) -> Tensor:
        y = self._convolve(x, self.binarizer.binarize_weight(self.weight))
        scale = self.binarizer.output_scale(self.weight)
        if scale is not None:
            y = y * scale.view(-1, 1, 1)
        if self.binarizer.scales_pixels:
            y = y * self.pixel_scale(x)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        clip = input_clip(self, x)
        if clip is None:
            x = self.binarizer.binarize_input(x)
            return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)
        y: Tensor = packed_conv2d(
            x,
            weight,
            clip,
            self.binarizer.has_binary_weight,
            list(self.stride),
            [int(p) for p in self.padding],
            list(self.dilation),
            self.groups,
            output_dtype(x),
            self.kernels,
        )[0]
        return y

    def pixel_scale(self, x: Tensor) -> Tensor:
        """K [N, 1, H', W']: the mean of abs(x) over all channels and the kernel's taps, zeros outside the image.

        Rastegari et al. 2016, "XNOR-Net", arXiv:1603.05279, section 3.2.
        """
        height, width = self.kernel_size
        box = x.new_full((1, 1, height, width), 1 / (height * width))
        return F.conv2d(x.abs().mean(1, keepdim=True), box, None, self.stride, self.padding, self.dilation)


class BinaryLinear(nn.Linear):
    """``linear(binarize(x), binarize(w)) * scale + bias``, arguments as in ``nn.Linear``; ``x`` is [N, I]."""

    kernels: Kernels = "auto"
    """See ``use_kernels``."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias)
        self.binarizer = Binarizer()

    def forward(self, x: Tensor) -> Tensor:
        y = self._multiply(x, self.binarizer.binarize_weight(self.weight))
        scale = self.binarizer.output_scale(self.weight)
        if scale is not None:
            y = y * scale
        if self.binarizer.scales_pixels:
            y = y * x.abs().mean(1, keepdim=True)
        return y if self.bias is None else y + self.bias

    def _multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        clip = input_clip(self, x) if x.dim() == 2 else None
        if clip is None:
            return F.linear(self.binarizer.binarize_input(x), weight)
        binary = self.binarizer.has_binary_weight
        y: Tensor = packed_linear(x, weight, clip, binary, output_dtype(x), self.kernels)[0]
        return y


BinaryLayer = BinaryConv2d | BinaryLinear


def binary_layers(model: nn.Module) -> dict[str, BinaryLayer]:
    """The binary layers of ``model`` by module path, in the order of registration."""
    return {name: m for name, m in model.named_modules() if isinstance(m, BinaryConv2d | BinaryLinear)}


def use_kernels(model: nn.Module, kernels: Kernels) -> None:
    """Set what computes the binary layers of ``model``: packed kernels and operators that keep bits, or plain PyTorch.

    ``auto`` packs where the device and the layer's size make it worth while, ``triton`` wherever a kernel can compute the
    layer, ``torch`` never. Raises ``ConfigError`` for another word.
    """
    if kernels not in KERNELS:
        raise ConfigError(f"kernels must be {', '.join(KERNELS)}, got {kernels!r}")
    for layer in binary_layers(model).values():
        layer.kernels = kernels
