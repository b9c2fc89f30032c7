"""The binary convolution and the binary dense layer.

A layer owns its weight and its geometry, and says whether its input is binarized at all; its ``Binarizer`` says how.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnnedge.binarization.binarizer import Binarizer, InputMode
from bnnedge.errors import ConfigError
from bnnedge.kernels.gpu.select import KERNELS, Kernels
from bnnedge.layers.hardtanh import Hardtanh
from bnnedge.layers.notes import ChannelSums, InputBits, attach, read
from bnnedge.layers.packed.conv import conv2d_again, packed_conv2d
from bnnedge.layers.packed.linear import packed_linear
from bnnedge.layers.recompute import offer, watch_norms
from bnnedge.layers.stash import on_gpu, takes


def input_clip(layer: BinaryLayer, x: Tensor) -> float | None:
    """The clip that the operators of ``packed`` need to compute this layer; None if plain PyTorch computes it.

    Plain PyTorch does so where the layer's input stays float, where the binarizer has a rule of its own for the input,
    where the user asked for it, and on a CPU where no gradient is wanted: there the operators only save memory between
    the forward and the backward pass.
    """
    if not layer.binary_input or layer.kernels == "torch" or not takes(x):
        return None
    wanted = x.device.type == "cuda" or torch.is_grad_enabled() or layer.kernels == "triton"
    return layer.binarizer.input_clip if wanted else None


def packs_weight(layer: BinaryLayer, weight: Tensor) -> bool:
    """Whether the operators are told that ``weight`` is binary, so that they keep its bits.

    A parameter on a CPU stays in memory anyway, so its bits would save nothing.
    """
    parameter = weight is layer.weight and not on_gpu(weight.device, layer.kernels)
    return layer.binarizer.has_binary_weight and not parameter


def scaled(y: Tensor, factors: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """``y`` times all ``factors``, one after the other, plus ``bias``."""
    for factor in factors:
        y = y * factor
    return y if bias is None else y + bias


def output_dtype(x: Tensor) -> torch.dtype:
    """The type that a convolution of ``x`` returns, which autocast may choose."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def zero_padding(padding: str | tuple[int, ...], kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, int]:
    """The padding of a convolution in pixels: above and below the image, and on its left and on its right.

    ``padding`` is ``"same"``, ``"valid"``, or these two numbers already. Raises ``ConfigError`` where ``"same"`` would
    add more on one side than on the other.
    """
    if padding == "valid":
        return 0, 0
    if padding != "same":
        return int(padding[0]), int(padding[1])
    rows, columns = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    if rows % 2 or columns % 2:
        raise ConfigError(
            f"padding='same' around a kernel of {kernel[0]}x{kernel[1]} adds one pixel more on one side than on the "
            "other; use an odd kernel, or pad by a number of pixels"
        )
    return rows // 2, columns // 2


class _BinarizedLayer(nn.Module):
    """What the two binary layers share: how input and weight are binarized.

    The layer computes ``f(b(x), binarize_weight(w)) * scale * K + bias``, where f is its convolution or matrix product,
    ``scale`` the binarizer's ``output_scale`` and K XNOR-Net's scale of pixels for binarizers with ``scales_pixels``.
    With ``binary_input`` b is the binarizer's ``binarize_input``. Without it b is the identity, whatever the method:
    neither a sign nor a standardization touches x, its whole gradient is passed on, and there is no K, which makes up
    for the magnitudes that a sign takes away.
    """

    binarizer: Binarizer
    """Set by the training method; without one the layer is trained by the plain straight-through estimator."""
    binary_input: bool
    """False for a binary kernel on a float input, as in the first layer of BinaryNet (arXiv:1602.02830)."""
    kernels: Kernels = "auto"
    """See ``use_kernels``."""

    @property
    def input_mode(self) -> InputMode:
        """What becomes of the input once training is over; see ``Binarizer``."""
        return self.binarizer.input_mode if self.binary_input else "float"

    @property
    def scales_pixels(self) -> bool:
        """Whether the layer multiplies its output by XNOR-Net's K of the input."""
        return self.binarizer.scales_pixels and self.binary_input

    def binarize_input(self, x: Tensor) -> Tensor:
        """The values that enter the convolution or the matrix product."""
        return self.binarizer.binarize_input(x) if self.binary_input else x

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.binary_input else ", binary_input=False")


class BinaryConv2d(_BinarizedLayer, nn.Conv2d):
    """``conv2d(binarize(x), binarize(w)) * scale + bias``, arguments as in ``nn.Conv2d``.

    Zero padding is added after the sign, so that taps outside the image contribute nothing. With ``binary_input=False``
    the weight alone is binary, and x enters the convolution as it is.
    """

    offers_output = False
    """See ``recompute_outputs``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        binary_input: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.padding = zero_padding(self.padding, self.kernel_size, self.dilation)
        self.binary_input = binary_input
        self.binarizer = Binarizer()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.binarizer.binarize_weight(self.weight)
        scale = self.binarizer.output_scale(self.weight)
        factors = [] if scale is None else [scale.view(-1, 1, 1)]
        if self.scales_pixels:
            factors.append(self.pixel_scale(x))
        bias = None if self.bias is None else self.bias.view(-1, 1, 1)
        y, again, sums = self._convolve(x, weight, bn_sums=self.training and not factors and bias is None)
        result = scaled(y, factors, bias)
        if again is not None:
            constants = [factor.detach() for factor in factors], None if bias is None else bias.detach()
            offer(result, lambda: scaled(again(), *constants))
        if sums is not None:
            attach(result, sums)
        return result

    def _convolve(
        self, x: Tensor, weight: Tensor, bn_sums: bool
    ) -> tuple[Tensor, Callable[[], Tensor] | None, ChannelSums | None]:
        """The convolution's output; a function that computes it again, if the layer offers that; the sums that a batch
        norm behind it wants, if ``bn_sums`` asks for them and the kernel gives them."""
        clip = input_clip(self, x)
        if clip is None:
            x = self.binarize_input(x)
            return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups), None, None
        geometry = list(self.stride), [int(p) for p in self.padding], list(self.dilation), self.groups
        noted = read(x, InputBits) if clip >= 1 and on_gpu(x.device, self.kernels) else None
        signs, counts = (None, None) if noted is None else noted
        eager = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # notes reach the layers behind
        binary = packs_weight(self, weight)
        kind = output_dtype(x), self.kernels
        outputs = packed_conv2d(x, weight, clip, binary, *geometry, *kind, signs, counts, bn_sums and eager)
        again = (
            conv2d_again(x, weight, outputs, *geometry, self.kernels, signs) if self.offers_output and eager else None
        )
        sums = outputs[5]
        return outputs[0], again, ChannelSums(sums, outputs[4]) if sums.numel() > 0 else None

    def pixel_scale(self, x: Tensor) -> Tensor:
        """XNOR-Net's K [N, 1, H', W'], the mean of abs(x) over all channels and the kernel's taps.

        Taps outside the image count as 0. Rastegari et al. 2016, "XNOR-Net", arXiv:1603.05279, section 3.2.
        """
        height, width = self.kernel_size
        box = x.new_full((1, 1, height, width), 1 / (height * width))
        return F.conv2d(x.abs().mean(1, keepdim=True), box, None, self.stride, self.padding, self.dilation)


class BinaryLinear(_BinarizedLayer, nn.Linear):
    """``linear(binarize(x), binarize(w)) * scale + bias``, arguments as in ``nn.Linear``; ``x`` is [N, I].

    With ``binary_input=False`` the weight alone is binary, and x enters the matrix product as it is.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, *, binary_input: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.binary_input = binary_input
        self.binarizer = Binarizer()

    def forward(self, x: Tensor) -> Tensor:
        y = self._multiply(x, self.binarizer.binarize_weight(self.weight))
        scale = self.binarizer.output_scale(self.weight)
        factors = [] if scale is None else [scale]
        if self.scales_pixels:
            factors.append(x.abs().mean(1, keepdim=True))
        return scaled(y, factors, self.bias)

    def _multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        clip = input_clip(self, x)
        if clip is None:
            return F.linear(self.binarize_input(x), weight)
        y: Tensor = packed_linear(x, weight, clip, packs_weight(self, weight), output_dtype(x), self.kernels)[0]
        return y


BinaryLayer = BinaryConv2d | BinaryLinear


def binary_layers(model: nn.Module) -> dict[str, BinaryLayer]:
    """The binary layers of ``model`` by module path, in the order of registration."""
    return {name: m for name, m in model.named_modules() if isinstance(m, BinaryConv2d | BinaryLinear)}


def use_kernels(model: nn.Module, kernels: Kernels) -> None:
    """Choose what computes the binary layers of ``model`` and its ``Hardtanh``: packed kernels and operators that keep
    bits, or plain PyTorch.

    ``auto`` packs on a CPU to save memory and on a GPU where that is faster (``packed_pays``), ``triton`` packs
    wherever a kernel can compute the layer, ``torch`` never does. Layers whose input stays float are always computed by
    plain PyTorch. Raises ``ConfigError`` for another word.
    """
    if kernels not in KERNELS:
        raise ConfigError(f"kernels must be {', '.join(KERNELS)}, got {kernels!r}")
    for module in model.modules():
        if isinstance(module, BinaryConv2d | BinaryLinear | Hardtanh):
            module.kernels = kernels


def recompute_outputs(model: nn.Module) -> None:
    """Make the batch norms that directly follow a ``BinaryConv2d`` of ``model`` keep no input for the backward pass.

    ``recompute.py`` says how.
    """
    for layer in binary_layers(model).values():
        if isinstance(layer, BinaryConv2d):
            layer.offers_output = True
    watch_norms(model)
