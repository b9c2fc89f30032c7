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
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from bnnedge.errors import BnnedgeError, ConfigError, MissingDependencyError, printable
from bnnedge.train.parent import end_with_parent

T = TypeVar("T")


class LostProcessError(BnnedgeError):
    """Another process has ended in the middle of an exchange."""

    exit_code = 1


class Group:
    """The processes that train together, seen from one of them; by default it is alone, and nothing is exchanged."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size = rank, size
        self.local_rank = local_rank
        """The place of this process among those of this machine, which is also the number of its GPU."""
        self.interrupted = False
        """Whether this process was asked to stop; the others learn it from the sums of a step."""

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def parts(self, inputs: Tensor, targets: Tensor, pieces: int) -> list[tuple[Tensor, Tensor]]:
        """This process's share of a batch, one pair for each of ``pieces`` micro-batches."""
        return list(zip(self.share(inputs, pieces), self.share(targets, pieces), strict=True))

    def share(self, whole: Tensor, pieces: int) -> list[Tensor]:
        """This process's slice of each of ``pieces`` micro-batches of ``whole``; sizes differ by one at most."""
        return [piece.tensor_split(self.size)[self.rank] for piece in whole.tensor_split(pieces)]

    @torch.no_grad()
    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, the same bits in all; one exchange for each dtype."""
        if self.size > 1:
            for flat, own in _flattened(tensors):
                with _in_touch():
                    dist.all_reduce(flat)
                _write_back(flat, own)

    @torch.no_grad()
    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by that of the main process."""
        if self.size > 1:
            for flat, own in _flattened(tensors):
                with _in_touch():
                    dist.broadcast(flat.view(torch.uint8), 0)  # bytes: not every backend knows every dtype
                _write_back(flat, own)

    def everywhere(self, compute: Callable[[], T]) -> T:
        """What ``compute()`` returns in this process; if one process fails, all raise the first error."""
        if self.size == 1:
            return compute()
        outcome, error = _attempt(compute)
        errors: list[Exception | None] = [None] * self.size
        with _in_touch():
            dist.all_gather_object(errors, error)
        for found in errors:
            if found is not None:
                raise found
        return outcome  # type: ignore[return-value]

    def main_only(self, compute: Callable[[], T]) -> T:
        """What ``compute()`` returns in the main process, given to all processes; they also share its errors."""
        if self.size == 1:
            return compute()
        message: list[Any] = [_attempt(compute) if self.is_main else None]
        with _in_touch():
            dist.broadcast_object_list(message, 0)
        outcome, error = message[0]
        if error is not None:
            raise error
        return outcome  # type: ignore[no-any-return]

    @contextmanager
    def main_holds(self, context: AbstractContextManager[None]) -> Iterator[None]:
        """A context in which the main process is inside of ``context``; if it cannot enter, all raise its error."""
        with ExitStack() as stack:
            self.main_only(lambda: stack.enter_context(context))
            yield

    def check_sizes(self, batch_sizes: Iterable[int], pieces: int, sync_batch_norm: bool) -> None:
        """Raise ``ConfigError`` unless every batch gives each process enough of each of ``pieces`` micro-batches."""
        least = max(self.size * (1 if sync_batch_norm else 2), 2)
        for size in batch_sizes:
            if size // pieces < least:
                raise ConfigError(
                    f"a batch of {size} samples (an epoch's last one may be smaller than batch_size) has micro-batches "
                    f"of {size // pieces} with accumulate {pieces}, but needs {least} samples in each for the "
                    f"{self.size} processes and batch normalisation; choose another --batch-size"
                )


ALONE = Group()


def _flattened(tensors: Iterable[Tensor]) -> Iterator[tuple[Tensor, list[Tensor]]]:
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for own in kinds.values():
        yield torch.cat([tensor.detach().reshape(-1) for tensor in own]), own


def _write_back(flat: Tensor, own: list[Tensor]) -> None:
    for tensor, values in zip(own, torch.split(flat, [tensor.numel() for tensor in own]), strict=True):
        tensor.detach().copy_(values.view(tensor.shape))


@contextmanager
def _in_touch() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # the backends' own errors are subclasses
        reason = " ".join(str(error).split())[:160]
        raise LostProcessError(
            f"another training process cannot be reached any more; go on with --resume ({reason})"
        ) from error


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
    end_with_parent()
    rank, size, local_rank = _place()
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


def _place() -> tuple[int, int, int]:
    """Rank, number of processes and rank on this machine.

    Raises ``ConfigError`` for an environment that is malformed.
    """
    found = []
    for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        text = os.environ.get(name, default)
        if not (text.isascii() and text.isdigit() and len(text) < 7):
            raise ConfigError(
                f"the environment variable {name} should be the whole number that torchrun sets, but is "
                f"{printable(text, 60)!r}; `unset {name}` trains in one process"
            )
        found.append(int(text))
    rank, size, local_rank = found
    if not 0 <= max(rank, local_rank) < size and "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        raise ConfigError(
            f"the environment variables RANK ({rank}) and LOCAL_RANK ({local_rank}) should be below WORLD_SIZE ({size})"
        )
    return rank, size, local_rank


def _meet() -> None:
    if not dist.is_available() or not dist.is_gloo_available():
        raise MissingDependencyError("several processes need torch.distributed with gloo, which this PyTorch lacks")
    # Small messages between the processes go through gloo, tensors on a GPU through NCCL.
    on_gpu = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:  # of addresses and ports that are malformed
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
