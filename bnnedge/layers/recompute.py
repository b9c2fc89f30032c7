"""Batch norms that keep no input: the binary convolution before them is run again in the backward pass.

A batch norm keeps its input for its gradient, 2 or 4 bytes an element. Where that is what a binary convolution
returned, the bits that the convolution keeps anyway tell it, at the price of one more binary convolution a layer. The
result is the same to the bit. It is for eager training: under ``torch.compile`` the layers are as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bnnedge.layers.notes import attach, read

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def watch_norms(model: nn.Module) -> None:
    """Make the batch norms of ``model`` drop an input that was offered; a second call changes nothing."""
    for module in model.modules():
        if isinstance(module, _NORMS) and _watch not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_watch)
            module.register_forward_hook(_unwatch, always_call=True)


class _Output:
    """Stands in place of a saved tensor and knows how to compute it."""

    def __init__(self, again: Callable[[], Tensor]) -> None:
        self.again = again


def offer(y: Tensor, again: Callable[[], Tensor]) -> None:
    """Attach a note to ``y`` that says how to compute it again."""
    attach(y, _Output(again))


def offered(x: Tensor) -> Callable[[], Tensor] | None:
    """The function that computes ``x`` again, or None if none was offered. An operator need not keep such an ``x``."""
    output = read(x, _Output)
    return None if output is None else output.again


def is_watcher(hook: object) -> bool:
    """Whether a hook of a module is one of ``watch_norms``."""
    return hook is _watch or hook is _unwatch


def _watch(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
    if torch.compiler.is_compiling():
        return
    (x,) = inputs
    kept, hooks = read(x, _Output), None
    if kept is not None:
        identity = _identity(x)  # Autograd keeps the hook, which must not keep x.

        def pack(tensor: Tensor) -> Any:
            return kept if _identity(tensor) == identity else tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, _unpack)
        hooks.__enter__()
    norm._bnnedge_hooks = hooks  # type: ignore[assignment]


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Differs between all tensors that are alive; autograd hands its hook another object for the same memory."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _unpack(kept: Any) -> Tensor:
    return kept.again() if isinstance(kept, _Output) else kept


def _unwatch(norm: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    hooks = norm.__dict__.pop("_bnnedge_hooks", None)
    if hooks is not None:
        hooks.__exit__(None, None, None)
