"""The binary convolution and the binary dense layer with their gradient, as operators that keep bits.

    y  = conv(sign(x), w)                      packed kernels, or a dense convolution of +-1 values
    dx = conv_transposed(g, w) * 1{abs(x) <= clip}
    dw = gradient of the dense convolution's weight for the input sign(x)

``w`` is the weight that a method made of the latent one, whose own gradient goes on through that. If it is binary, one
magnitude in each output channel, it is packed too. g is real, so both gradients are dense; sign(x) and w are unpacked
just in time.

The operators are opaque to ``torch.compile`` and ``torch.export``, with shapes known to both. They return what they
keep: see ``stash.Bits``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bnnedge.kernels.flat_bits import is_channels_last
from bnnedge.kernels.geometry import BConv2dGeometry, output_size
from bnnedge.kernels.gpu.select import packed_pays, select
from bnnedge.layers import stash

_Function = TypeVar("_Function", bound=Callable[..., Any])


def on_device_of_first(function: _Function) -> _Function:
    """Runs on the GPU of the first argument, as Triton launches on the current one whatever its arguments."""

    @functools.wraps(function)
    def guarded(*arguments: Any) -> Any:
        with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
            return function(*arguments)

    return guarded  # type: ignore[return-value]


Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""y; signs and mask of the input; signs and scale of a binary weight, else empty."""
ConvOutputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""``Outputs``, the input's bits empty where they were given, and ``reference.Convolved.sums``, else empty."""


@torch.library.custom_op("bnnedge::packed_conv2d", mutates_args=())
@on_device_of_first
def packed_conv2d(
    x: Tensor,
    weight: Tensor,
    clip: float,
    binary_weight: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    out_dtype: torch.dtype,
    kernels: str,
    signs: Tensor | None = None,
    counts: Tensor | None = None,
    bn_sums: bool = False,
) -> ConvOutputs:
    """``conv2d(sign(x), weight)`` of ``out_dtype`` with zero padding, and the ``ConvOutputs`` that backward reads.

    ``x`` [N, C, H, W]; ``weight`` [O, C / groups, kh, kw], with ``binary_weight`` of one magnitude in each output
    channel; ``clip``, infinite for none, bounds the inputs that the gradient passes; ``kernels`` is auto or triton.
    ``signs`` and ``counts`` are those of ``x`` on a GPU, which has no element beyond the clip then and is not read.
    With ``bn_sums`` a kernel on packed words sums its integers.
    """
    bconv2d = select("bconv2d", x.device, x.shape[1], groups, kernels)  # first, as it refuses kernels that cannot run
    gpu = stash.on_gpu(x.device, kernels)
    bits = stash.pack_input(x, clip, gpu) if signs is None or counts is None else stash.given(signs, counts)
    filters = _pack_weight(weight, binary_weight, gpu)
    shapes = x.shape, is_channels_last(x), weight.shape
    geometry = stride, padding, dilation, groups
    y, sums = _convolve(bconv2d, bits, filters, weight, shapes, geometry, out_dtype, kernels, bn_sums)
    new_signs = bits.signs if signs is None else signs.new_empty(0)  # a result must not be an argument
    no_sums = x.new_empty(0, dtype=torch.int64)
    return y, new_signs, bits.mask, filters.signs, filters.scale, no_sums if sums is None else sums


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
    bconv2d = select("bconv2d", x.device, x.shape[1], groups, kernels)
    arguments = (x.shape, is_channels_last(x), weight.shape), (stride, padding, dilation, groups), y.dtype, kernels
    del x, y, weight, outputs

    @torch.no_grad()
    def again() -> Tensor:
        with torch.cuda.device_of(signs):  # type: ignore[no-untyped-call]
            return _convolve(bconv2d, bits, packed, dense, *arguments)[0]

    return again


@packed_conv2d.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    clip: float,
    binary_weight: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    out_dtype: torch.dtype,
    kernels: str,
    signs: Tensor | None = None,
    counts: Tensor | None = None,
    bn_sums: bool = False,
) -> ConvOutputs:
    gpu = stash.on_gpu(x.device, kernels)
    y = _empty_output(x, weight, stride, padding, dilation, out_dtype, gpu or is_channels_last(x))
    packs = bn_sums and binary_weight
    packs = packs and select("bconv2d", x.device, x.shape[1], groups, kernels) is not None
    sums = x.new_empty((2, weight.shape[0]) if packs else 0, dtype=torch.int64)
    new_signs, mask, filters, scale = _empty_stash(x, weight, clip, binary_weight, gpu)
    if signs is not None:
        new_signs, mask = signs.new_empty(0), signs.new_empty(0)
    return y, new_signs, mask, filters, scale, sums


@torch.library.custom_op("bnnedge::packed_conv2d_backward", mutates_args=())
@on_device_of_first
def packed_conv2d_backward(
    g: Tensor,
    signs: Tensor,
    mask: Tensor,
    filters: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    x_shape: list[int],
    x_channels_last: bool,
    x_dtype: torch.dtype,
    weight_shape: list[int],
    weight_dtype: torch.dtype,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    needs_x: bool,
    needs_weight: bool,
    kernels: str,
) -> tuple[Tensor, Tensor]:
    """(dx, dw) of ``packed_conv2d``, empty where not needed; ``weight`` is None if ``filters`` holds its signs."""
    gpu = stash.on_gpu(g.device, kernels)
    x = stash.unpack_input(signs, x_shape, x_channels_last, g.dtype, gpu)
    if weight is None:
        weight = stash.unpack_weight(filters, scale, weight_shape, g.dtype, gpu)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        g.contiguous(memory_format=torch.channels_last) if gpu else g,
        x,
        _operand(weight, g.dtype, gpu),
        None,
        stride,
        padding,
        dilation,
        False,
        [0, 0],
        groups,
        [needs_x, needs_weight, False],
    )
    return (
        in_format(stash.mask_gradient(dx, mask, x_channels_last, gpu).to(x_dtype), gpu or x_channels_last)
        if needs_x
        else g.new_empty(0),
        dw.to(weight_dtype).contiguous() if needs_weight else g.new_empty(0),
    )


@packed_conv2d_backward.register_fake
def _(
    g: Tensor,
    signs: Tensor,
    mask: Tensor,
    filters: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    x_shape: list[int],
    x_channels_last: bool,
    x_dtype: torch.dtype,
    weight_shape: list[int],
    weight_dtype: torch.dtype,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    needs_x: bool,
    needs_weight: bool,
    kernels: str,
) -> tuple[Tensor, Tensor]:
    gpu = stash.on_gpu(g.device, kernels)
    dx = g.new_empty(x_shape if needs_x else 0, dtype=x_dtype if needs_x else g.dtype)
    return (
        in_format(dx, gpu or x_channels_last) if needs_x else dx,
        g.new_empty(weight_shape if needs_weight else 0, dtype=weight_dtype if needs_weight else g.dtype),
    )


def _conv2d_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, _, binary_weight, *ctx.geometry, _, ctx.kernels, signs, _, _ = inputs
    _keep(ctx, x, weight, binary_weight, output, signs)


def _conv2d_backward(ctx, g, *_):  # type: ignore[no-untyped-def]
    needs_x, needs_weight, *_ = ctx.needs_input_grad
    dx, dw = packed_conv2d_backward(
        g, *ctx.saved_tensors, *ctx.described, *ctx.geometry, needs_x, needs_weight, ctx.kernels
    )
    return dx if needs_x else None, dw if needs_weight else None, *[None] * 11


packed_conv2d.register_autograd(_conv2d_backward, setup_context=_conv2d_context)


@torch.library.custom_op("bnnedge::packed_linear", mutates_args=())
@on_device_of_first
def packed_linear(
    x: Tensor, weight: Tensor, clip: float, binary_weight: bool, out_dtype: torch.dtype, kernels: str
) -> Outputs:
    """``linear(sign(x), weight)``; ``x`` [N, I], ``weight`` [O, I], the rest as in ``packed_conv2d``."""
    xnor_gemm = select("xnor_gemm", x.device, x.shape[1], kernels=kernels)
    gpu = stash.on_gpu(x.device, kernels)
    bits, filters = stash.pack_input(x, clip, gpu), _pack_weight(weight, binary_weight, gpu)

    def packed() -> Tensor:
        assert xnor_gemm is not None
        operands = (bits.signs, filters.signs, x.shape[1], bits.counts, filters.counts)
        y: Tensor = xnor_gemm(*operands, filters.scale, out_dtype)
        return y

    def dense() -> Tensor:
        return F.linear(stash.unpack_input(bits.signs, x.shape, False, out_dtype, gpu), weight.to(out_dtype))

    layer = (*x.shape, *weight.shape, out_dtype, x.device)
    packs = binary_weight and xnor_gemm is not None
    y = packed() if packs and (kernels == "triton" or packed_pays(layer, packed, dense)) else dense()
    return y, bits.signs, bits.mask, filters.signs, filters.scale


@packed_linear.register_fake
def _(x: Tensor, weight: Tensor, clip: float, binary_weight: bool, out_dtype: torch.dtype, kernels: str) -> Outputs:
    y = x.new_empty((x.shape[0], weight.shape[0]), dtype=out_dtype)
    return y, *_empty_stash(x, weight, clip, binary_weight, stash.on_gpu(x.device, kernels))


@torch.library.custom_op("bnnedge::packed_linear_backward", mutates_args=())
@on_device_of_first
def packed_linear_backward(
    g: Tensor,
    signs: Tensor,
    mask: Tensor,
    filters: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    x_shape: list[int],
    x_channels_last: bool,
    x_dtype: torch.dtype,
    weight_shape: list[int],
    weight_dtype: torch.dtype,
    needs_x: bool,
    needs_weight: bool,
    kernels: str,
) -> tuple[Tensor, Tensor]:
    """(dx, dw) of ``packed_linear``, empty where not needed."""
    gpu = stash.on_gpu(g.device, kernels)
    dx = dw = g.new_empty(0)
    if needs_x:
        if weight is None:
            weight = stash.unpack_weight(filters, scale, weight_shape, g.dtype, gpu)
        dx = stash.mask_gradient(g @ weight.to(g.dtype), mask, x_channels_last, gpu).to(x_dtype)
    if needs_weight:
        dw = (g.t() @ stash.unpack_input(signs, x_shape, x_channels_last, g.dtype, gpu)).to(weight_dtype)
    return dx, dw if needs_weight else g.new_empty(0)


@packed_linear_backward.register_fake
def _(
    g: Tensor,
    signs: Tensor,
    mask: Tensor,
    filters: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    x_shape: list[int],
    x_channels_last: bool,
    x_dtype: torch.dtype,
    weight_shape: list[int],
    weight_dtype: torch.dtype,
    needs_x: bool,
    needs_weight: bool,
    kernels: str,
) -> tuple[Tensor, Tensor]:
    return (
        g.new_empty(x_shape if needs_x else 0, dtype=x_dtype if needs_x else g.dtype),
        g.new_empty(weight_shape if needs_weight else 0, dtype=weight_dtype if needs_weight else g.dtype),
    )


def _linear_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, _, binary_weight, _, ctx.kernels = inputs
    _keep(ctx, x, weight, binary_weight, output)


def _linear_backward(ctx, g, *_):  # type: ignore[no-untyped-def]
    needs_x, needs_weight, *_ = ctx.needs_input_grad
    dx, dw = packed_linear_backward(g, *ctx.saved_tensors, *ctx.described, needs_x, needs_weight, ctx.kernels)
    return dx if needs_x else None, dw if needs_weight else None, *[None] * 4


packed_linear.register_autograd(_linear_backward, setup_context=_linear_context)


def _keep(  # type: ignore[no-untyped-def]
    ctx,
    x: Tensor,
    weight: Tensor,
    binary_weight: bool,
    output: Outputs | ConvOutputs,
    given_signs: Tensor | None = None,
) -> None:
    _, signs, mask, filters, scale, *_ = output
    signs = signs if given_signs is None else given_signs
    ctx.mark_non_differentiable(scale)
    ctx.save_for_backward(signs, mask, filters, scale, None if binary_weight else weight)
    ctx.described = (list(x.shape), is_channels_last(x), x.dtype, list(weight.shape), weight.dtype)


def _pack_weight(weight: Tensor, binary: bool, gpu: bool) -> stash.Bits:
    if binary:
        return stash.pack_weight(weight, gpu)
    none = weight.new_empty(0, dtype=torch.int32)
    return stash.Bits(none, none, none, weight.new_empty(0))


def _empty_stash(
    x: Tensor, weight: Tensor, clip: float, binary_weight: bool, gpu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bits = stash.empty_bits(x, clip, gpu)
    if not binary_weight:
        return bits.signs, bits.mask, weight.new_empty(0, dtype=torch.int32), weight.new_empty(0)
    filters = stash.empty_bits(weight, float("inf"), gpu, is_weight=True)
    return bits.signs, bits.mask, filters.signs, filters.scale


def _empty_output(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    y = x.new_empty((x.shape[0], weight.shape[0], *[output_size(*size) for size in sizes]), dtype=dtype)
    return in_format(y, channels_last)


def in_format(y: Tensor, channels_last: bool) -> Tensor:
    """``y`` [N, C, H, W] laid out in ``channels_last`` or as its shape says; [N, C] as it is."""
    channels_last = channels_last and y.dim() == 4
    return y.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _operand(weight: Tensor, dtype: torch.dtype, gpu: bool) -> Tensor:
    """The weight as the dense convolution takes it."""
    return weight.to(dtype, memory_format=torch.channels_last) if gpu else weight.to(dtype)


def _convolve(
    bconv2d: Callable[..., Any] | None,
    bits: stash.Bits,
    filters: stash.Bits,
    weight: Tensor | None,
    shapes: tuple[Sequence[int], bool, Sequence[int]],
    geometry: tuple[list[int], list[int], list[int], int],
    out_dtype: torch.dtype,
    kernels: str,
    bn_sums: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """y, and the sums if a kernel on packed words makes them.

    ``bconv2d`` is what ``select`` gave; ``weight`` is None if ``filters`` has its bits; ``shapes`` are the input's with
    whether it was channels-last, and the weight's; ``geometry`` is stride, padding, dilation and groups.
    """
    x_shape, x_channels_last, weight_shape = shapes

    def packed() -> tuple[Tensor, Tensor | None]:
        assert bconv2d is not None
        checked = _geometry(x_shape, weight_shape, *geometry[:3])
        counts = [each.counts if each.counts.numel() > 0 else stash.count(each.signs) for each in (bits, filters)]
        found = bconv2d(bits.signs, filters.signs, checked, *counts, filters.scale, out_dtype, bn_sums)
        return stash.channels_first(found.y), found.sums

    def dense() -> tuple[Tensor, Tensor | None]:
        gpu = stash.on_gpu(bits.signs.device, kernels)
        operand = weight
        if operand is None:
            operand = stash.unpack_weight(filters.signs, filters.scale, weight_shape, out_dtype, gpu)
        values = stash.unpack_input(bits.signs, x_shape, x_channels_last, out_dtype, gpu)
        y = F.conv2d(values, _operand(operand, out_dtype, gpu), None, *geometry)
        return in_format(y, gpu or x_channels_last), None

    if filters.signs.numel() == 0 or bconv2d is None:
        return dense()
    stride, padding, dilation, _ = geometry
    layer = (*x_shape, *weight_shape, *stride, *padding, *dilation, out_dtype, bits.signs.device)
    return packed() if kernels == "triton" or packed_pays(layer, packed, dense) else dense()


def _geometry(
    x_shape: Sequence[int], weight_shape: Sequence[int], stride: list[int], padding: list[int], dilation: list[int]
) -> BConv2dGeometry:
    batch, channels, height, width = x_shape
    out_channels, _, kernel_y, kernel_x = weight_shape
    return BConv2dGeometry(
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        out_channels=out_channels,
        kernel=(kernel_y, kernel_x),
        stride=(stride[0], stride[1]),
        padding=(padding[0], padding[1]),
        pad_value=0,
        dilation=(dilation[0], dilation[1]),
        groups=1,
        out_height=output_size(height, kernel_y, stride[0], padding[0], dilation[0]),
        out_width=output_size(width, kernel_x, stride[1], padding[1], dilation[1]),
    )
