"""Batch normalisation over the images of all processes, or averages of the statistics of each process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from bnnedge.train.distributed import Group


class _Normalize(torch.autograd.Function):
    """``y = (x - mean) / sqrt(var + eps) * weight + bias`` with mean and var over the images of all processes.

    With ``z = (x - mean) / sqrt(var + eps)``, n elements in a channel, ``g = dL/dy``, sums over all processes:
    ``dL/dx = weight / sqrt(var + eps) (g - sum(g) / n - z sum(g z) / n)``. The gradients of weight and bias are of this
    process's images, as all gradients are before a step sums them.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Group
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        dims, shape = _channel_dims(x)
        var, mean = torch.var_mean(wide, dims, correction=0)
        mean, var, count = _merged(mean, var, x.numel() // x.shape[1], group)
        scale = (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.group = group
        y = (wide - mean.view(shape)) * (scale if weight is None else scale * weight).view(shape)
        y = y if bias is None else y + bias.view(shape)
        ctx.mark_non_differentiable(mean, var, count)
        return y.to(x.dtype), mean, var, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        dims, shape = _channel_dims(x)
        g = grads[0].to(mean.dtype)
        z = (x.to(mean.dtype) - mean.view(shape)) * scale.view(shape)
        sums = torch.stack([g.sum(dims), (g * z).sum(dims)])
        own = sums.clone()
        ctx.group.sum_([sums])
        constant, along = (sums / count).unbind()
        factor = scale if weight is None else scale * weight
        dx = (g - constant.view(shape) - z * along.view(shape)) * factor.view(shape)
        affine = (None, None) if weight is None else (own[1], own[0])
        return dx.to(x.dtype), *affine, None, None


def _channel_dims(x: Tensor) -> tuple[list[int], list[int]]:
    """The dimensions that a channel of [N, C, ...] spans, and the shape of a value for each channel."""
    return [d for d in range(x.dim()) if d != 1], [1, -1, *[1] * (x.dim() - 2)]


def _merged(mean: Tensor, var: Tensor, count: int, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, population variance and number of the elements of all processes, from those of each (Chan et al. 1979)."""
    table = mean.new_zeros(group.size, 2 * len(mean) + 1)
    table[group.rank] = torch.cat([mean, var, mean.new_tensor([count])])
    group.sum_([table])
    means, variances, counts = torch.split(table, [len(mean), len(mean), 1], 1)
    total = counts.sum()
    merged = (counts * means).sum(0) / total
    return merged, (counts * (variances + (means - merged).square())).sum(0) / total, total


class GlobalBatchNorm(_BatchNorm):
    """Batch normalisation over the images of all processes, on any device; parameters and buffers of ``norm``.

    ``torch.nn.SyncBatchNorm`` is the same on GPUs alone. Sums run in float32 at least.
    """

    def __init__(self, norm: _BatchNorm, group: Group) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.train(norm.training)
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.group = group

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        y, mean, var, count = _Normalize.apply(x, self.weight, self.bias, self.eps, self.group)  # type: ignore[no-untyped-call]
        if self.training and self.running_mean is not None:
            self._follow(mean, var * count / (count - 1))
        return y  # type: ignore[no-any-return]

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.mul_(1 - rate).add_(mean, alpha=rate)
        self.running_var.mul_(1 - rate).add_(var, alpha=rate)


def share_batch_norm(model: nn.Module, group: Group) -> None:
    """Replace PyTorch's batch normalisations in ``model`` by ``GlobalBatchNorm``, if there are several processes."""
    if group.size == 1:
        return
    twins: dict[int, GlobalBatchNorm] = {}
    for name, child in list(model.named_modules(remove_duplicate=False)):
        if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            assert isinstance(child, _BatchNorm)
            model.set_submodule(name, twins.setdefault(id(child), GlobalBatchNorm(child, group)))


def average_statistics(states: Iterable[dict[str, Tensor]], group: Group) -> None:
    """Replace the running statistics in each state dict by their means over the processes."""
    found = [v for s in states for k, v in s.items() if k.endswith(("running_mean", "running_var"))]
    group.sum_(found)
    for tensor in found:
        tensor.div_(group.size)
