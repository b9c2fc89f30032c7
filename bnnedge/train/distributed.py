"""Several processes that train one network together: who they are, what each computes and what they sum.

Every process has the same weights and optimizer states, takes its slice of each batch, and weighs its loss with the
slice's share; the sum of all gradients is then that of the whole batch, and every process takes the same step.
Gradients are summed once, after the last backward pass of a step. ``DistributedDataParallel`` is not used: it fixes at
the start which parameters have gradients and sums in every backward pass, while methods freeze weights half-way and
take several passes in a step.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from bnnedge.errors import BnnedgeError, ConfigError, MissingDependencyError

T = TypeVar("T")


class Group:
    """The processes that train together, seen from one of them; by default it is alone, and nothing is exchanged."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size = rank, size
        self.local_rank = local_rank
        """Among the processes of this machine; the number of its GPU."""
        self.interrupted = False
        """Whether this process was asked to stop; the others learn it from the sums of a step."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def parts(self, images: Tensor, labels: Tensor, pieces: int) -> list[tuple[Tensor, Tensor]]:
        """This process's slice of each of ``pieces`` micro-batches; sizes differ by one image at most."""
        micro_batches = zip(images.tensor_split(pieces), labels.tensor_split(pieces), strict=True)
        return [(x.tensor_split(self.size)[self.rank], y.tensor_split(self.size)[self.rank]) for x, y in micro_batches]

    @torch.no_grad()
    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, the same bits in all; one exchange for each dtype."""
        if self.size > 1:
            for flat, own in _flattened(tensors):
                dist.all_reduce(flat)
                _write_back(flat, own)

    @torch.no_grad()
    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by that of the main process."""
        if self.size > 1:
            for flat, own in _flattened(tensors):
                dist.broadcast(flat.view(torch.uint8), 0)  # bytes, since not every backend knows every dtype
                _write_back(flat, own)

    def everywhere(self, compute: Callable[[], T]) -> T:
        """``compute()`` of each process; where one fails with an error for the user, all raise the first such one."""
        if self.size == 1:
            return compute()
        outcome, error = _attempt(compute)
        errors: list[Exception | None] = [None] * self.size
        dist.all_gather_object(errors, error)
        for found in errors:
            if found is not None:
                raise found
        return outcome  # type: ignore[return-value]

    def main_only(self, compute: Callable[[], T]) -> T:
        """``compute()`` of the main process, in all processes; so is an error for the user."""
        if self.size == 1:
            return compute()
        message: list[Any] = [_attempt(compute) if self.is_main else None]
        dist.broadcast_object_list(message, 0)
        outcome, error = message[0]
        if error is not None:
            raise error
        return outcome  # type: ignore[no-any-return]

    def check_sizes(self, batch_sizes: Iterable[int], pieces: int, sync_batch_norm: bool) -> None:
        """Raise ``ConfigError`` unless every batch gives each process enough of each of ``pieces`` micro-batches."""
        for size in batch_sizes:
            micro_batch = size // pieces
            if micro_batch // self.size < (1 if sync_batch_norm else 2) or micro_batch < 2:
                least = "2 images" if self.size == 1 else f"{1 if sync_batch_norm else 2} images on each process"
                raise ConfigError(
                    f"a batch of {size} images (the last one of an epoch may be smaller than batch_size) does not give "
                    f"{pieces} micro-batches on {self.size} processes: each needs {least}; choose another --batch-size"
                )


ALONE = Group()


def _flattened(tensors: Iterable[Tensor]) -> Iterator[tuple[Tensor, list[Tensor]]]:
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for own in kinds.values():
        yield torch.cat([tensor.detach().reshape(-1) for tensor in own]), own


def _write_back(flat: Tensor, own: list[Tensor]) -> None:
    for tensor, values in zip(own, flat.split([tensor.numel() for tensor in own]), strict=True):
        tensor.detach().copy_(values.view(tensor.shape))


def _attempt(compute: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return compute(), None
    except (BnnedgeError, OSError) as error:
        return None, error


@contextmanager
def join() -> Iterator[Group]:
    """The group of the processes that ``torchrun`` or ``bnnedge.train.launch`` started, told by the environment.

    An interrupt (Ctrl-C) of any of them stops all after the same step. Raises ``MissingDependencyError`` if they cannot
    meet. Without such an environment the process is alone.
    """
    rank, size, local_rank = (int(os.environ.get(name, d)) for name, d in _ENVIRONMENT)
    if size == 1 or "RANK" not in os.environ:
        yield Group()
        return
    _meet()
    group = Group(rank, size, local_rank)
    try:
        with _noting_interrupts(group):
            yield group
    finally:
        dist.destroy_process_group()


_ENVIRONMENT = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def _meet() -> None:
    if not dist.is_available() or not dist.is_gloo_available():
        raise MissingDependencyError("several processes need torch.distributed with gloo, which this PyTorch lacks")
    # Small messages between the processes go through gloo, tensors on a GPU through NCCL.
    on_gpu = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MissingDependencyError(f"the training processes cannot meet: {reason}") from error


@contextmanager
def _noting_interrupts(group: Group) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(*_: object) -> None:
        group.interrupted = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
    means, variances, counts = table.split([len(mean), len(mean), 1], 1)
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

    @torch.compiler.disable
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
