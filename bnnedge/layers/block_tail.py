"""The tail of a residual block, ``hardtanh(batch_norm(y) + residual)``, in one pass forward and two backward.

    x = (y - mean) * invstd * weight + bias + residual         z = clip(x, -1, 1)

The pass that makes z packs its signs too, which the next binary convolution takes as they are, and a mask bit of each
element for the gradient. Mean and invstd come from sums that the convolution before has made, where it has made them.
Between forward and backward y and the mask are kept, or the mask alone if y can be computed again (``recompute.py``).

By element, in bf16: 6.25 bytes are read and written forward, 12.1 backward, where the four layers one after another and
the packing take 20.5 and 18.3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bnnedge.layers import stash
from bnnedge.layers.hardtanh import Hardtanh
from bnnedge.layers.notes import ChannelSums, InputBits, attach, read
from bnnedge.layers.packed.formats import in_format
from bnnedge.layers.packed.operators import on_device_of_first
from bnnedge.layers.recompute import is_watcher, offered


def normalize_add_clip(bn: nn.Module, act: nn.Module, y: Tensor, residual: Tensor | None = None) -> Tensor:
    """``act(bn(y) + residual)``, without the sum if there is no ``residual``.

    In training on a GPU one kernel computes it if ``bn`` is an ``nn.BatchNorm2d`` with its usual settings and ``act``
    this package's ``Hardtanh``, whose ``kernels`` is not torch; neither module is called then, so that modules with
    hooks are left alone. All else is that expression.
    """
    if not _fuses(bn, act, y, residual):
        y = bn(y)
        return act(y if residual is None else y + residual)  # type: ignore[no-any-return]
    assert isinstance(bn, nn.BatchNorm2d) and bn.num_batches_tracked is not None
    noted = read(y, ChannelSums)
    sums, alpha = (None, None) if noted is None else noted
    bn.num_batches_tracked.add_(1)
    running = bn.running_mean, bn.running_var, bn.eps, bn.momentum
    mean, invstd = batch_statistics(y.detach(), *running, sums, alpha)
    z, signs, counts, _ = normalize_add_clip_op(y, residual, bn.weight, bn.bias, mean, invstd)
    attach(z, InputBits(signs, counts))
    return z  # type: ignore[no-any-return]


def _fuses(bn: nn.Module, act: nn.Module, y: Tensor, residual: Tensor | None) -> bool:
    if not (bn.training and act.training and torch.is_grad_enabled()):  # Exporters trace in eval mode.
        return False
    if type(bn) is not nn.BatchNorm2d or type(act) is not Hardtanh or act.kernels == "torch":
        return False
    if not stash.on_gpu(y.device, act.kernels) or _has_hooks(bn) or _has_hooks(act):
        return False
    usual = bn.momentum is not None and bn.eps > 0 and bn.running_mean is not None and bn.weight is not None
    if not usual or bn.weight.dtype != torch.float32:
        return False
    maps = (y,) if residual is None else (y, residual)
    fits = all(stash.takes(m) and m.dtype != torch.float64 and m.shape == y.shape for m in maps)
    return fits and y.dim() == 4 and y.shape[1] == bn.num_features and y.numel() > y.shape[1]


def _has_hooks(module: nn.Module) -> bool:
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    backward = len(module._backward_hooks) + len(module._backward_pre_hooks)
    return backward > 0 or not all(is_watcher(hook) for hook in hooks)


@torch.library.custom_op("bnnedge::batch_statistics", mutates_args=("running_mean", "running_var"))
@on_device_of_first
def batch_statistics(
    y: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    momentum: float,
    sums: Tensor | None,
    alpha: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Mean and invstd, float32 [C], of ``y`` [N, C, H, W], from ``ChannelSums`` where there are any; the running ones
    move as those of ``nn.BatchNorm2d`` do."""
    from bnnedge.kernels.gpu import bn_statistics

    maps = stash.channels_last(y).contiguous()
    return bn_statistics.batch_statistics(maps, running_mean, running_var, eps, momentum, sums, alpha)


@batch_statistics.register_fake
def _(y: Tensor, running_mean: Tensor, running_var: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(running_mean), torch.empty_like(running_var)


@torch.library.custom_op("bnnedge::normalize_add_clip", mutates_args=())
@on_device_of_first
def normalize_add_clip_op(
    y: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z and its signs, counts and mask, as in ``kernels/gpu/reference.py``; ``y``, ``residual`` and z are [N, C, H, W].

    The gradient takes ``mean`` and ``invstd`` for functions of ``y``.
    """
    from bnnedge.kernels.gpu.bn_clip_pack import bn_clip_pack

    shortcut = None if residual is None else stash.channels_last(residual).contiguous()
    z, bits = bn_clip_pack(stash.channels_last(y).contiguous(), mean, invstd, weight, bias, shortcut)
    assert bits.mask is not None
    return stash.channels_first(z), bits.signs, bits.counts, bits.mask


@normalize_add_clip_op.register_fake
def _(
    y: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = y.dtype if residual is None else torch.promote_types(y.dtype, residual.dtype)
    bits = stash.empty_bits(y, 1.0, gpu=True)
    return in_format(y.new_empty(y.shape, dtype=dtype), True), bits.signs, bits.counts, bits.mask


@torch.library.custom_op("bnnedge::normalize_add_clip_backward", mutates_args=())
@on_device_of_first
def normalize_add_clip_backward(
    g: Tensor, y: Tensor, mask: Tensor, weight: Tensor, mean: Tensor, invstd: Tensor, needs_residual: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of y, the residual (of ``g``'s type; empty where not needed), weight and bias."""
    from bnnedge.kernels.gpu.bn_gradient import bn_clip_gradient

    maps = [stash.channels_last(m).contiguous() for m in (g, y)]
    dy, dresidual, dweight, dbias = bn_clip_gradient(maps[0], mask, maps[1], mean, invstd, weight, needs_residual)
    dresidual = g.new_empty(0) if dresidual is None else stash.channels_first(dresidual)
    return stash.channels_first(dy), dresidual, dweight, dbias


@normalize_add_clip_backward.register_fake
def _(
    g: Tensor, y: Tensor, mask: Tensor, weight: Tensor, mean: Tensor, invstd: Tensor, needs_residual: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dresidual = in_format(g.new_empty(g.shape), True) if needs_residual else g.new_empty(0)
    return in_format(y.new_empty(y.shape), True), dresidual, torch.empty_like(weight), torch.empty_like(weight)


def _context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    y, residual, weight, _, mean, invstd = inputs
    ctx.residual_dtype = None if residual is None else residual.dtype
    ctx.again = offered(y)
    ctx.save_for_backward(y if ctx.again is None else None, output[3], weight, mean, invstd)


def _backward(ctx, g, *_):  # type: ignore[no-untyped-def]
    needs_y, needs_residual, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    y, *kept = ctx.saved_tensors
    y = y if ctx.again is None else ctx.again()
    dy, dresidual, dweight, dbias = normalize_add_clip_backward(g, y, *kept, needs_residual)
    return (
        dy if needs_y else None,
        dresidual.to(ctx.residual_dtype) if needs_residual else None,
        dweight if needs_weight else None,
        dbias if needs_bias else None,
        None,
        None,
    )


normalize_add_clip_op.register_autograd(_backward, setup_context=_context)
