"""The binary convolution as an operator, its gradient, and its output computed again from the bits that it kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bnnedge.kernels.flat_bits import is_channels_last
from bnnedge.kernels.geometry import BConv2dGeometry, output_size
from bnnedge.kernels.gpu.select import packed_pays, select
from bnnedge.layers import stash
from bnnedge.layers.packed.formats import Gradient, empty_bits, in_format, keep, kept, pack_weight
from bnnedge.layers.packed.operators import operator, shapes_of

ConvOutputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""``formats.Outputs``, the input's bits empty where they were given, and ``reference.Convolved.sums``, else empty."""


@dataclass(frozen=True)
class Conv2dArguments:
    """Arguments of ``packed_conv2d``.

    ``x`` [N, C, H, W]; ``weight`` [O, C / groups, kh, kw], with ``binary_weight`` of one magnitude in each output
    channel; ``clip``, infinite for none, bounds the inputs that the gradient passes; ``kernels`` is auto or triton.
    ``signs`` and ``counts`` are those of ``x`` on a GPU, which has no element beyond the clip then and is not read.
    With ``bn_sums`` a kernel on packed words sums its integers.
    """

    x: Tensor
    weight: Tensor
    clip: float
    binary_weight: bool
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    out_dtype: torch.dtype
    kernels: str
    signs: Tensor | None = None
    counts: Tensor | None = None
    bn_sums: bool = False


@dataclass(frozen=True)
class _Layer:
    """A convolution without its tensors: shapes, the memory format of the input, settings and types."""

    x_shape: Sequence[int]
    x_channels_last: bool
    weight_shape: Sequence[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    out_dtype: torch.dtype
    kernels: str
    device: torch.device

    @property
    def gpu(self) -> bool:
        """Whether the bits are laid out for GPU kernels."""
        return stash.on_gpu(self.device, self.kernels)

    def select(self) -> Callable[..., Any] | None:
        """The packed kernel for this layer. Raises ``ConfigError`` if ``kernels`` cannot run here."""
        return select("bconv2d", self.device, self.x_shape[1], self.groups, self.kernels)

    def geometry(self) -> BConv2dGeometry:
        """The geometry of a packed kernel, which has one group."""
        batch, channels, height, width = self.x_shape
        out_channels, _, kernel_y, kernel_x = self.weight_shape
        out_height, out_width = self.output_sizes()
        return BConv2dGeometry(
            batch=batch,
            height=height,
            width=width,
            channels=channels,
            out_channels=out_channels,
            kernel=(kernel_y, kernel_x),
            stride=(self.stride[0], self.stride[1]),
            padding=(self.padding[0], self.padding[1]),
            pad_value=0,
            dilation=(self.dilation[0], self.dilation[1]),
            groups=1,
            out_height=out_height,
            out_width=out_width,
        )

    def output_sizes(self) -> list[int]:
        """Height and width of the output."""
        axes = zip(self.x_shape[2:], self.weight_shape[2:], self.stride, self.padding, self.dilation, strict=True)
        return [output_size(*axis) for axis in axes]


def _layer_of(
    x: Tensor,
    weight: Tensor,
    settings: tuple[list[int], list[int], list[int], int],
    out_dtype: torch.dtype,
    kernels: str,
) -> _Layer:
    """The layer of these tensors; ``settings`` are stride, padding, dilation and groups."""
    return _Layer(x.shape, is_channels_last(x), weight.shape, *settings, out_dtype, kernels, x.device)


def _layer(a: Conv2dArguments) -> _Layer:
    return _layer_of(a.x, a.weight, (a.stride, a.padding, a.dilation, a.groups), a.out_dtype, a.kernels)


@operator("bnnedge::packed_conv2d")
def packed_conv2d(a: Conv2dArguments) -> ConvOutputs:
    """``conv2d(sign(x), weight)`` of ``out_dtype`` with zero padding, and what the backward pass reads."""
    layer = _layer(a)
    bconv2d = layer.select()  # first, as it refuses kernels that cannot run
    if a.signs is None or a.counts is None:
        bits = stash.pack_input(a.x, a.clip, layer.gpu)
    else:
        bits = stash.given(a.signs, a.counts)
    filters = pack_weight(a.weight, a.binary_weight, layer.gpu)
    y, sums = _convolve(layer, bconv2d, bits, filters, a.weight, a.bn_sums)
    new_signs = bits.signs if a.signs is None else a.signs.new_empty(0)  # a result must not be an argument
    no_sums = a.x.new_empty(0, dtype=torch.int64)
    return y, new_signs, bits.mask, filters.signs, filters.scale, no_sums if sums is None else sums


@shapes_of(packed_conv2d)
def _(a: Conv2dArguments) -> ConvOutputs:
    layer = _layer(a)
    y = a.x.new_empty((a.x.shape[0], a.weight.shape[0], *layer.output_sizes()), dtype=a.out_dtype)
    packs = a.bn_sums and a.binary_weight and layer.select() is not None
    sums = a.x.new_empty((2, a.weight.shape[0]) if packs else 0, dtype=torch.int64)
    signs, mask, filters, scale = empty_bits(a.x, a.weight, a.clip, a.binary_weight, layer.gpu)
    if a.signs is not None:
        signs, mask = a.signs.new_empty(0), a.signs.new_empty(0)
    return in_format(y, layer.gpu or layer.x_channels_last), signs, mask, filters, scale, sums


def conv2d_again(
    x: Tensor,
    weight: Tensor,
    outputs: ConvOutputs,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    kernels: str,
    given_signs: Tensor | None = None,
) -> Callable[[], Tensor]:
    """A function that computes the y of ``outputs``, which ``packed_conv2d`` returned, anew from the bits beside it or
    the ``given_signs``.

    It holds on to neither ``x`` nor y, nor to a ``weight`` that was packed. y is the same to the bit.
    """
    y, signs, _, filters, scale, _ = (tensor.detach() for tensor in outputs)
    signs = signs if given_signs is None else given_signs
    bits, packed = stash.given(signs), stash.given(filters)._replace(scale=scale)
    dense = weight.detach() if filters.numel() == 0 else None
    layer = _layer_of(x, weight, (stride, padding, dilation, groups), y.dtype, kernels)
    bconv2d = layer.select()
    del x, y, weight, outputs

    @torch.no_grad()
    def again() -> Tensor:
        with torch.cuda.device_of(signs):  # type: ignore[no-untyped-call]
            return _convolve(layer, bconv2d, bits, packed, dense)[0]

    return again


@dataclass(frozen=True)
class Conv2dGradient(Gradient):
    """Arguments of ``packed_conv2d_backward``."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    needs_x: bool
    needs_weight: bool
    kernels: str


@operator("bnnedge::packed_conv2d_backward")
def packed_conv2d_backward(a: Conv2dGradient) -> tuple[Tensor, Tensor]:
    """(dx, dw) of ``packed_conv2d``, empty where not needed."""
    gpu = stash.on_gpu(a.g.device, a.kernels)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        a.g.contiguous(memory_format=torch.channels_last) if gpu else a.g,
        a.unpacked_input(gpu),
        _operand(a.dense_weight(gpu), a.g.dtype, gpu),
        None,
        a.stride,
        a.padding,
        a.dilation,
        False,
        [0, 0],
        a.groups,
        [a.needs_x, a.needs_weight, False],
    )
    no_dx, no_dw = a.empty(False, False)
    if a.needs_x:
        dx = stash.mask_gradient(dx, a.mask, a.x_channels_last, gpu).to(a.x_dtype)
        dx = in_format(dx, gpu or a.x_channels_last)
    return dx if a.needs_x else no_dx, dw.to(a.weight_dtype).contiguous() if a.needs_weight else no_dw


@shapes_of(packed_conv2d_backward)
def _(a: Conv2dGradient) -> tuple[Tensor, Tensor]:
    dx, dw = a.empty(a.needs_x, a.needs_weight)
    return in_format(dx, stash.on_gpu(a.g.device, a.kernels) or a.x_channels_last), dw


def _context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    a = Conv2dArguments(*inputs)
    ctx.settings, ctx.kernels = (a.stride, a.padding, a.dilation, a.groups), a.kernels
    keep(ctx, a.x, a.weight, a.binary_weight, output, a.signs)


def _backward(ctx, g, *_):  # type: ignore[no-untyped-def]
    needs_x, needs_weight, *_ = ctx.needs_input_grad
    dx, dw = packed_conv2d_backward(g, *kept(ctx), *ctx.settings, needs_x, needs_weight, ctx.kernels)
    return dx if needs_x else None, dw if needs_weight else None, *[None] * 11


packed_conv2d.register_autograd(_backward, setup_context=_context)


def _operand(weight: Tensor, dtype: torch.dtype, gpu: bool) -> Tensor:
    """The weight as the dense convolution takes it."""
    return weight.to(dtype, memory_format=torch.channels_last) if gpu else weight.to(dtype)


def _convolve(
    layer: _Layer,
    bconv2d: Callable[..., Any] | None,
    bits: stash.Bits,
    filters: stash.Bits,
    weight: Tensor | None,
    bn_sums: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """y, and the sums if a kernel on packed words makes them.

    ``bconv2d`` is what ``layer.select`` gave; ``weight`` is None if ``filters`` has its bits.
    """

    def packed() -> tuple[Tensor, Tensor | None]:
        assert bconv2d is not None
        counts = [each.counts if each.counts.numel() > 0 else stash.count(each.signs) for each in (bits, filters)]
        operands = (bits.signs, filters.signs, layer.geometry(), *counts, filters.scale)
        found = bconv2d(*operands, layer.out_dtype, bn_sums)
        return stash.channels_first(found.y), found.sums

    def dense() -> tuple[Tensor, Tensor | None]:
        operand = weight
        if operand is None:
            operand = stash.unpack_weight(filters.signs, filters.scale, layer.weight_shape, layer.out_dtype, layer.gpu)
        values = stash.unpack_input(bits.signs, layer.x_shape, layer.x_channels_last, layer.out_dtype, layer.gpu)
        operand = _operand(operand, layer.out_dtype, layer.gpu)
        y = F.conv2d(values, operand, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        return in_format(y, layer.gpu or layer.x_channels_last), None

    if filters.signs.numel() == 0 or bconv2d is None:
        return dense()
    settings = (*layer.stride, *layer.padding, *layer.dilation)
    timed = (*layer.x_shape, *layer.weight_shape, *settings, layer.out_dtype, layer.device)
    return packed() if layer.kernels == "triton" or packed_pays(timed, packed, dense) else dense()
